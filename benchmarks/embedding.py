"""Embedding of text and audio tokens beside its peers: forward and backward into Megatron's fp32 `main_grad`.

    python benchmarks/embedding.py
    python benchmarks/embedding.py --hidden 3072 --repeats 40
    python benchmarks/embedding.py --tokens runs/tiny --output real.json  # with the codes of a run's recordings

8,192 tokens, 60 % audio, in the released vocabulary: whole (TP1) and the eighth of it that one of eight tensor-parallel
ranks holds, here the last, where the audio rows are. Every form ends with the same sums in `main_grad`, and clearing
that buffer is left out for all. "copy" is PyTorch's copy of as many bytes as the case must move (`forward_bytes`,
`backward_bytes`), so its time over ours is our share of the copy's bandwidth.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import VocabParallelEmbedding
from megatron.core.transformer import TransformerConfig
from side_by_side import Forms, copy_of, core_milliseconds, medians, milliseconds, not_measured, on_gpu, row, save
from token_mix import VOCABULARY, mixed_ids
from torch import Tensor
from torch._C._distributed_c10d import FakeProcessGroup

from megatron_aqaa import ops, platform
from megatron_aqaa.vocabulary import GROUP_SIZE, MODALITY_NAMES

BATCH, LENGTH = 4, 2048
DTYPE = torch.bfloat16
SMALL_ROWS = len(MODALITY_NAMES) + GROUP_SIZE  # of both small tables


class Slice(NamedTuple):
    """The rows of one tensor-parallel rank."""

    tensor_parallel: int

    @property
    def rows(self) -> int:
        return VOCABULARY.size // self.tensor_parallel

    @property
    def start(self) -> int:
        return VOCABULARY.size - self.rows

    def owned(self, token_ids: Tensor) -> Tensor:
        """The ids of this rank."""
        return token_ids[(token_ids >= self.start) & (token_ids < self.start + self.rows)]

    def __str__(self) -> str:
        return f"TP{self.tensor_parallel}"


def forward_bytes(token_ids: Tensor, hidden: int, part: Slice, small_rows: int = 0) -> int:
    """Different rows read and output written, in the dtype of both."""
    rows = part.owned(token_ids).unique().numel() + small_rows
    return DTYPE.itemsize * hidden * (rows + token_ids.numel())


def backward_bytes(token_ids: Tensor, hidden: int, part: Slice) -> int:
    """Gradients of this rank's tokens read, their different rows of `main_grad` read and written."""
    owned = part.owned(token_ids)
    rows = owned.unique().numel()
    return hidden * (DTYPE.itemsize * owned.numel() + 2 * torch.float32.itemsize * rows)


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


def training_forms(token_ids: Tensor, hidden: int, part: Slice) -> Forms:
    """Forward and backward of each form; adding atomically differs from ours on a GPU only."""
    device = platform.device()
    weight = torch.nn.Parameter(torch.randn(part.rows, hidden, device=device).to(DTYPE))
    weight.main_grad = torch.zeros(weight.shape, device=device)
    weight.grad_added_to_main_grad = False
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

    layout = {"vocab_start_index": part.start, "vocab_size": VOCABULARY.size}
    ours = functools.partial(ops.dual_codebook_embedding, token_ids, weight, **layout)
    forms = {"ours": with_hook(ours)}
    if on_gpu():
        forms["ours, atomic"] = with_hook(functools.partial(ours, deterministic=False))
    forms |= {
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


def forward_forms(token_ids: Tensor, hidden: int, part: Slice) -> Forms:
    """Forward alone, of the word embeddings."""
    weight = torch.randn(part.rows, hidden, device=platform.device()).to(DTYPE)

    def eager() -> Tensor:
        return lookup(*local_rows(token_ids, part.start, part.rows), weight)

    return {
        "ours": lambda: ops.dual_codebook_embedding(token_ids, weight, part.start, vocab_size=VOCABULARY.size),
        "eager": eager,
        "torch.compile": torch.compile(eager),
    }


def stack_forms(token_ids: Tensor, hidden: int, part: Slice) -> Forms:
    """Forward alone, with both small tables."""
    device, v = platform.device(), VOCABULARY
    sizes = (part.rows, len(MODALITY_NAMES), GROUP_SIZE)
    weight, type_weight, position_weight = (torch.randn(n, hidden, device=device).to(DTYPE) for n in sizes)
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


CASES = {
    "forward + backward": (training_forms, lambda *of: forward_bytes(*of) + backward_bytes(*of)),
    "forward": (forward_forms, forward_bytes),
    "forward, 2 tables": (stack_forms, lambda *of: forward_bytes(*of, SMALL_ROWS)),
}
GPU_FORMS = {
    "forward + backward": ("ours", "ours, atomic", "index_add_", "eager", "torch.compile", "Megatron", "copy"),
    "forward": ("ours", "eager", "torch.compile", "copy"),
    "forward, 2 tables": ("ours", "eager", "torch.compile", "copy"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[3072, 12288])
    parser.add_argument("--tensor-parallel", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1] if on_gpu() else [1, 2][: os.cpu_count()])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--processor-time", action="store_true", help="instead of wall time; for one thread")
    parser.add_argument("--tokens", type=Path, help="folder of a run, whose recordings' codes are taken; default drawn")
    parser.add_argument("--output", type=Path, default=None, help="JSON; default benchmarks/results/embedding_….json")
    args = parser.parse_args()
    clock = core_milliseconds if args.processor_time and not on_gpu() else milliseconds
    platform.keep_freed_memory()  # as the training loop does
    platform.initialize(platform.ParallelConfig())
    token_ids = mixed_ids(BATCH, LENGTH, args.tokens)
    results = []
    shapes = ((c, h, Slice(tp)) for c in args.threads for h in args.hidden for tp in args.tensor_parallel)
    for threads, hidden, part in shapes:
        torch.set_num_threads(threads)
        for what, (make, count_bytes) in CASES.items():
            num_bytes = count_bytes(token_ids, hidden, part)
            times = medians(make(token_ids, hidden, part) | {"copy": copy_of(num_bytes)}, args.repeats, clock)
            case = {"case": what, "tensor_parallel": part.tensor_parallel, "rows": part.rows, "hidden": hidden}
            results.append({**case, "threads": threads, "bytes": num_bytes, "median_ms": times})
            print(row(f"{what}, {part} [{part.rows}, {hidden}], {threads} thr.", times), flush=True)
    if not on_gpu():
        results += [not_measured(f"{what}, on a GPU", GPU_FORMS[what]) for what in CASES]
    facts = {"dtype": "bf16", "tokens": token_ids.numel(), "repeats": args.repeats, "clock": clock.__name__}
    save("embedding", args.output, results, **facts, real_codes=bool(args.tokens))
    platform.shutdown()


if __name__ == "__main__":
    main()
