"""Operators side by side with their peers in one run: medians, ratios, JSON.

    python benchmarks/ops.py                       # everything, on the GPU if there is one
    python benchmarks/ops.py --hidden 12288 --repeats 40

Embedding: forward and backward into Megatron's fp32 `main_grad`, 8,192 tokens of a mix that is 60 % audio. Every form
ends with the same sums in `main_grad`; clearing that buffer is left out for all. Index builders: a million tokens.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import platform as host
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_aqaa import ops, platform
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary()
BATCH, LENGTH = 4, 2048
Forms = dict[str, Callable[[], object]]


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
    def forward(ctx, token_ids: Tensor, weight: Tensor, main_grad: Tensor) -> Tensor:
        ctx.token_ids, ctx.main_grad = token_ids, main_grad
        return F.embedding(token_ids, weight).transpose(0, 1).contiguous()

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[None, None, None]:
        rows = ctx.token_ids.t().reshape(-1)
        ctx.main_grad.index_add_(0, rows, grad_output.reshape(rows.numel(), -1).to(ctx.main_grad.dtype))
        return None, None, None


def embedding_forms(hidden: int, dtype: torch.dtype) -> Forms:
    """Forward and backward of each form, at TP1."""
    from megatron.core.tensor_parallel import VocabParallelEmbedding
    from megatron.core.transformer import TransformerConfig

    device = platform.device()
    config = TransformerConfig(
        num_layers=1, hidden_size=hidden, num_attention_heads=1, params_dtype=dtype, perform_initialization=False
    )
    module = VocabParallelEmbedding(VOCABULARY.size, hidden, init_method=torch.nn.init.normal_, config=config)
    module.reduce_scatter_embeddings = False
    weight = module.weight
    torch.nn.init.normal_(weight)
    weight.main_grad = torch.zeros(weight.shape, device=device)
    weight.grad_added_to_main_grad = False
    token_ids = mixed_ids()
    grad_output = torch.randn(LENGTH, BATCH, hidden, device=device).to(dtype)

    def hook() -> None:  # Megatron's DDP, after each micro-batch
        if not weight.grad_added_to_main_grad:
            weight.main_grad.add_(weight.grad)
        weight.grad, weight.grad_added_to_main_grad = None, False

    def with_hook(forward: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: (forward().backward(grad_output), hook())

    def index_add() -> None:
        IndexAdd.apply(token_ids, weight, weight.main_grad).backward(grad_output)

    return {
        "ours": with_hook(lambda: ops.dual_codebook_embedding(token_ids, weight)),
        "index_add_": index_add,
        "eager": with_hook(lambda: F.embedding(token_ids, weight).transpose(0, 1).contiguous()),
        "Megatron": with_hook(lambda: module(token_ids).transpose(0, 1).contiguous()),
    }


def forward_forms(hidden: int, dtype: torch.dtype, rows: int, start: int) -> Forms:
    """Forward alone with both small tables, on one rank's slice of the vocabulary."""
    device, v = platform.device(), VOCABULARY
    weight, type_weight, position_weight = (
        torch.randn(n, hidden, device=device).to(dtype).requires_grad_(False) for n in (rows, 3, 5)
    )
    token_ids = mixed_ids()
    positions = ops.positions_in_group(token_ids, v.linguistic_start, v.audio_stop)
    ranges = (v.linguistic_start, v.semantic_start, v.audio_stop)
    arguments = (token_ids, weight, type_weight, position_weight, positions, start, v.size, *ranges, 1.0)

    def eager() -> Tensor:  # one lookup after another, in the dtype of the tables
        local = token_ids - start
        owned = ((local >= 0) & (local < rows))[..., None]
        kinds = v.modality(token_ids)
        out = F.embedding(local.clamp(0, rows - 1), weight) + F.embedding(kinds, type_weight)
        out = out + F.embedding(positions.clamp_min(0), position_weight) * (positions >= 0)[..., None]
        return (out * owned).transpose(0, 1).contiguous()

    return {"ours": lambda: torch.ops.megatron_aqaa.dual_codebook_embedding(*arguments), "eager": eager}


def index_forms() -> dict[str, Forms]:
    random = np.random.default_rng(0)
    linguistic, semantic = random.integers(0, 1024, 400_000), random.integers(0, 4096, 600_000)
    text, audio = random.integers(0, 65536, 400_000), random.integers(65536, 70656, 600_000)
    lists = [x.tolist() for x in (linguistic, semantic, text, audio)]
    lengths = np.clip(random.lognormal(5.5, 1.0, 5_000).astype(np.int64), 1, 8192)
    return {
        "interleave_codes": {
            "ours": lambda: ops.interleave_codes(linguistic, semantic, linguistic_start=65536, semantic_start=66560),
            "numpy": lambda: np.hstack((linguistic.reshape(-1, 2) + 65536, semantic.reshape(-1, 3) + 66560)).ravel(),
            "Python": lambda: python_codes(lists[0], lists[1]),
        },
        "interleave_text_audio": {
            "ours": lambda: ops.interleave_text_audio(text, audio),
            "numpy": lambda: np.hstack((text.reshape(-1, 10), audio.reshape(-1, 15))).ravel(),
            "Python": lambda: python_text_audio(lists[2], lists[3]),
        },
        "packing_plan": {
            "ours": lambda: ops.packing_plan(lengths, 8192),
            "numpy": lambda: numpy_packing(lengths, 8192),
            "Python": lambda: python_packing(lengths.tolist(), 8192),
        },
    }


def python_codes(linguistic: list[int], semantic: list[int]) -> list[int]:
    out = []
    for group in range(min(len(linguistic) // 2, len(semantic) // 3)):
        out += [code + 65536 for code in linguistic[2 * group : 2 * group + 2]]
        out += [code + 66560 for code in semantic[3 * group : 3 * group + 3]]
    return out


def python_text_audio(text: list[int], audio: list[int]) -> list[int]:
    out, t, a = [], 0, 0
    while a < len(audio):
        stop = len(audio) if len(text) - t < 10 else a + 15
        out += text[t : t + 10] + audio[a:stop]
        t, a = t + 10, stop
    return out + text[t:]


def numpy_packing(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    rooms, bins = np.zeros(0, np.int64), []
    for item in np.argsort(-lengths, kind="stable"):
        left = np.where(rooms >= lengths[item], rooms, capacity + 1)
        if not bins or left.min() > capacity:
            rooms, left = np.append(rooms, capacity), np.append(left, capacity)
            bins.append([])
        best = int(left.argmin())
        rooms[best] -= lengths[item]
        bins[best].append(int(item))
    return bins


def python_packing(lengths: list[int], capacity: int) -> list[list[int]]:
    open_bins, bins = [], []  # (room, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(open_bins, (lengths[item], 0))
        room, best = open_bins.pop(place) if place < len(open_bins) else (capacity, len(bins))
        if best == len(bins):
            bins.append([])
        bins[best].append(item)
        bisect.insort(open_bins, (room - lengths[item], best))
    return bins


def milliseconds(call: Callable[[], object]) -> float:
    """One call, the device's work included; on a GPU its second-level cache is overwritten first."""
    if platform.device().type == "cpu":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    torch.empty(256 << 20, dtype=torch.uint8, device=platform.device()).zero_()
    begin, end = (torch.Event(platform.device(), enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def measure(title: str, forms: Forms, repeats: int, report: list[dict]) -> None:
    """Forms take turns in blocks, so that a busy machine slows each alike.

    Blocks, because single calls in turn let one form pay for another's memory: the allocator gave back the pages of
    the dense gradients inside the next call, which cost that one 90 ms.
    """
    block, warm_up = 5, 2
    samples: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(-(-repeats // block)):
        for name, call in forms.items():
            samples[name] += [milliseconds(call) for _ in range(warm_up + block)][warm_up:]
    medians = {name: statistics.median(values) for name, values in samples.items()}
    report.append({"case": title, "threads": torch.get_num_threads(), "median_ms": medians})
    ratios = "  ".join(f"{name} {ms:9.3f} ms ({ms / medians['ours']:6.2f}x)" for name, ms in medians.items())
    print(f"{title:46s} {ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=None, help="JSON; default benchmarks/results/ops_<device>.json")
    args = parser.parse_args()
    platform.keep_freed_memory()  # as the training loop does
    platform.initialize(platform.ParallelConfig())
    device = platform.device()
    report: list[dict] = []
    threads = sorted({1, min(2, os.cpu_count() or 1)}) if device.type == "cpu" else [torch.get_num_threads()]
    for count in threads:
        torch.set_num_threads(count)
        print(f"--- {device.type}, {count} thread{'s' * (count > 1)}; (n x): time over ours")
        title = f"embedding + main_grad, [74752, {args.hidden}] bf16"
        measure(title, embedding_forms(args.hidden, torch.bfloat16), args.repeats, report)
        title = f"embedding forward, 2 tables, TP8 [9344, {args.hidden}]"
        measure(title, forward_forms(args.hidden, torch.bfloat16, 9344, 7 * 9344), args.repeats, report)
    for title, forms in index_forms().items():
        measure(title, forms, args.repeats, report)
    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": host.python_version()}
    record = {"date": date.today().isoformat(), "device": device.type, "machine": host.machine(), **versions}
    output = args.output or Path(__file__).parent / "results" / f"ops_{device.type}.json"
    output.write_text(json.dumps({**record, "repeats": args.repeats, "results": report}, indent=2) + "\n")
    print(f"written to {output}")
    platform.shutdown()


if __name__ == "__main__":
    main()
