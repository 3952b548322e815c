"""Embedding of text and audio tokens beside its peers: forward and backward into Megatron's fp32 `main_grad`.

    python benchmarks/embedding.py
    python benchmarks/embedding.py --hidden 3072 --repeats 40

8,192 tokens, 60 % audio, in the released vocabulary: whole (TP1) and the eighth of it that one of eight tensor-parallel
ranks holds, here the last, where the audio rows are. Every form ends with the same sums in `main_grad`, and clearing
that buffer is left out for all.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import VocabParallelEmbedding
from megatron.core.transformer import TransformerConfig
from side_by_side import Forms, medians, on_gpu, row, save
from torch import Tensor
from torch._C._distributed_c10d import FakeProcessGroup

from megatron_aqaa import ops, platform
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary()
BATCH, LENGTH = 4, 2048
DTYPE = torch.bfloat16


class Slice(NamedTuple):
    """The rows of one tensor-parallel rank."""

    tensor_parallel: int

    @property
    def rows(self) -> int:
        return VOCABULARY.size // self.tensor_parallel

    @property
    def start(self) -> int:
        return VOCABULARY.size - self.rows

    def __str__(self) -> str:
        return f"TP{self.tensor_parallel}"


def mixed_ids(seed: int = 0) -> Tensor:
    """[B, S]: 60 % audio (groups, all 5,120 rows in use), 40 % text with word-like frequencies."""
    random = np.random.default_rng(seed)
    count = BATCH * LENGTH
    groups = count * 3 // 5 // 5
    audio = ops.interleave_codes(
        random.integers(0, VOCABULARY.linguistic_size, 2 * groups),
        random.integers(0, VOCABULARY.semantic_size, 3 * groups),
        linguistic_start=VOCABULARY.linguistic_start,
        semantic_start=VOCABULARY.semantic_start,
    )
    text = (random.zipf(1.3, count - audio.size) - 1) % VOCABULARY.text_size
    ids = torch.from_numpy(ops.interleave_text_audio(text, audio)).view(BATCH, LENGTH)
    return ids.to(platform.device())


class IndexAdd(torch.autograd.Function):
    """Plain PyTorch's best: rows added into `main_grad` by `index_add_`, without a dense gradient."""

    @staticmethod
    def forward(ctx, token_ids: Tensor, weight: Tensor, main_grad: Tensor, start: int) -> Tensor:
        ctx.main_grad = main_grad
        ctx.rows, ctx.owned = local_rows(token_ids, start, len(weight))
        return lookup(ctx.rows, ctx.owned, weight)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[None, None, None, None]:
        if ctx.owned is not None:
            grad_output = grad_output * ctx.owned.t()[..., None]
        rows = ctx.rows.t().reshape(-1)
        ctx.main_grad.index_add_(0, rows, grad_output.reshape(rows.numel(), -1).to(ctx.main_grad.dtype))
        return None, None, None, None


def local_rows(token_ids: Tensor, start: int, rows: int) -> tuple[Tensor, Tensor | None]:
    """Row of each id in the slice, 0 for those of other ranks, and which are ours (None: all)."""
    if rows == VOCABULARY.size:
        return token_ids, None
    local = token_ids - start
    owned = (local >= 0) & (local < rows)
    return local * owned, owned


def lookup(rows: Tensor, owned: Tensor | None, weight: Tensor) -> Tensor:
    out = F.embedding(rows, weight)
    return (out if owned is None else out * owned[..., None]).transpose(0, 1).contiguous()


def training_forms(hidden: int, part: Slice) -> Forms:
    """Forward and backward of each form."""
    device = platform.device()
    weight = torch.nn.Parameter(torch.randn(part.rows, hidden, device=device).to(DTYPE))
    weight.main_grad = torch.zeros(weight.shape, device=device)
    weight.grad_added_to_main_grad = False
    token_ids = mixed_ids()
    grad_output = torch.randn(LENGTH, BATCH, hidden, device=device).to(DTYPE)

    def eager() -> Tensor:
        return lookup(*local_rows(token_ids, part.start, part.rows), weight)

    def with_hook(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def step() -> None:
            forward().backward(grad_output)
            if not weight.grad_added_to_main_grad:  # Megatron's DDP, after each micro-batch
                weight.main_grad.add_(weight.grad)
            weight.grad, weight.grad_added_to_main_grad = None, False

        return step

    ours = {"vocab_start_index": part.start, "vocab_size": VOCABULARY.size}
    forms = {
        "ours": with_hook(lambda: ops.dual_codebook_embedding(token_ids, weight, **ours)),
        "index_add_": lambda: IndexAdd.apply(token_ids, weight, weight.main_grad, part.start).backward(grad_output),
        "eager": with_hook(eager),
        "torch.compile": with_hook(torch.compile(eager)),
    }
    module = megatron_embedding(hidden, weight, part)
    return forms | {"Megatron": with_hook(lambda: module(token_ids).transpose(0, 1).contiguous())}


def megatron_embedding(hidden: int, weight: torch.nn.Parameter, part: Slice) -> VocabParallelEmbedding:
    """Megatron's module over `weight`; its all-reduce over other ranks does nothing, as no form here communicates."""
    config = TransformerConfig(
        num_layers=1, hidden_size=hidden, num_attention_heads=1, params_dtype=DTYPE, perform_initialization=False
    )
    size = part.tensor_parallel
    module = VocabParallelEmbedding(
        VOCABULARY.size,
        hidden,
        init_method=torch.nn.init.normal_,
        config=config,
        tp_group=FakeProcessGroup._create_internal(size - 1, size),
    )
    module.weight = weight
    return module


def forward_forms(hidden: int, part: Slice) -> Forms:
    """Forward alone, with both small tables."""
    device, v = platform.device(), VOCABULARY
    weight, type_weight, position_weight = (torch.randn(n, hidden, device=device).to(DTYPE) for n in (part.rows, 3, 5))
    token_ids = mixed_ids()
    positions = ops.positions_in_group(token_ids, v.linguistic_start, v.audio_stop)
    ranges = (v.linguistic_start, v.semantic_start, v.audio_stop)
    arguments = (token_ids, weight, type_weight, position_weight, positions, part.start, v.size, *ranges, 1.0)

    def eager() -> Tensor:  # one lookup after another, in the dtype of the tables
        local = token_ids - part.start
        owned = ((local >= 0) & (local < part.rows))[..., None]
        out = F.embedding(local.clamp(0, part.rows - 1), weight) + F.embedding(v.modality(token_ids), type_weight)
        out = out + F.embedding(positions.clamp_min(0), position_weight) * (positions >= 0)[..., None]
        return (out * owned).transpose(0, 1).contiguous()

    return {
        "ours": lambda: torch.ops.megatron_aqaa.dual_codebook_embedding(*arguments),
        "eager": eager,
        "torch.compile": torch.compile(eager),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[3072, 12288])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=None, help="JSON; default benchmarks/results/embedding_….json")
    args = parser.parse_args()
    platform.keep_freed_memory()  # as the training loop does
    platform.initialize(platform.ParallelConfig())
    results = []
    threads = [torch.get_num_threads()] if on_gpu() else sorted({1, min(2, os.cpu_count() or 1)})
    for count, hidden, part in ((c, h, Slice(tp)) for c in threads for h in args.hidden for tp in (1, 8)):
        torch.set_num_threads(count)
        for what, make in (("forward + backward", training_forms), ("forward, 2 tables", forward_forms)):
            times = medians(make(hidden, part), args.repeats)
            case = {"case": what, "tensor_parallel": part.tensor_parallel, "rows": part.rows, "hidden": hidden}
            results.append({**case, "threads": count, "median_ms": times})
            title = f"{what}, {part} [{part.rows}, {hidden}], {count} thr."
            print(row(title, times), flush=True)
    save("embedding", args.output, results, dtype="bf16", tokens=BATCH * LENGTH, repeats=args.repeats)
    platform.shutdown()


if __name__ == "__main__":
    main()
