"""Embedding of frames of two codes beside its peer, two lookups and a sum: forward and backward.

    python benchmarks/code_pair.py

Frames at 25 Hz, codes drawn evenly; every third frame has no linguistic code, for which the peers' table has a row of
zeros. The vocoder's shape makes ordinary gradients in fp32, the language model's adds to Megatron's fp32 `main_grad`
from bf16 activations: ours writes there itself, the peers' dense gradients are added. Clearing that buffer is left out.
"copy" is PyTorch's copy of as many bytes as the case must move.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from side_by_side import Forms, copy_of, core_milliseconds, medians, milliseconds, not_measured, on_gpu, row, save
from torch import Tensor

from megatron_aqaa import ops, platform
from megatron_aqaa.vocabulary import Vocabulary

ROWS = (Vocabulary.linguistic_size, Vocabulary.semantic_size)
GPU_FORMS = ("ours", "ours, atomic", "eager", "torch.compile", "copy")


class Case(NamedTuple):
    """[batch, frames] pairs of codes into a width."""

    batch: int
    frames: int
    hidden: int
    dtype: torch.dtype
    main_grad: bool

    def __str__(self) -> str:
        into = "main_grad" if self.main_grad else "ordinary gradients"
        return f"[{self.batch}, {self.frames}, {self.hidden}] {str(self.dtype).removeprefix('torch.')}, {into}"

    def codes(self) -> Tensor:
        """[batch, frames, 2]."""
        random = torch.Generator().manual_seed(0)
        shape = (self.batch, self.frames)
        linguistic, semantic = (torch.randint(rows, shape, generator=random) for rows in ROWS)
        linguistic[:, 2::3] = -1
        return torch.stack([linguistic, semantic], -1).to(platform.device())

    def tables(self, *, padded: bool) -> list[torch.nn.Parameter]:
        """Both, the same at every call; padded, with a row of zeros before them, for absent codes."""
        random = torch.Generator().manual_seed(1)
        values = (torch.randn(rows, self.hidden, generator=random) for rows in ROWS)
        return [self._parameter(F.pad(rows, (0, 0, 1, 0)) if padded else rows) for rows in values]

    def _parameter(self, values: Tensor) -> torch.nn.Parameter:
        weight = torch.nn.Parameter(values.to(platform.device(), self.dtype))
        if self.main_grad:
            weight.main_grad = torch.zeros(weight.shape, device=platform.device())
            weight.grad_added_to_main_grad = False
        return weight

    def bytes(self, codes: Tensor) -> tuple[int, int]:
        """Forward: different rows read, output written. With backward: output's gradient read; rows' written.

        A row of `main_grad` is read as well; an ordinary gradient is written whole, the zeros too.
        """
        rows = sum(column[column >= 0].unique().numel() for column in codes.unbind(-1))
        output = self.hidden * self.dtype.itemsize * codes[..., 0].numel()
        forward = output + self.hidden * self.dtype.itemsize * rows
        gradient = 2 * torch.float32.itemsize * rows if self.main_grad else self.dtype.itemsize * sum(ROWS)
        return forward, forward + output + self.hidden * gradient


CASES = [
    Case(16, 250, 512, torch.float32, main_grad=False),  # ten seconds of a vocoder's batch
    Case(4, 2048, 3072, torch.bfloat16, main_grad=True),
]


def forms(case: Case, *, backward: bool) -> Forms:
    codes = case.codes()
    weights, padded = case.tables(padded=False), case.tables(padded=True)
    rows = (codes + 1).unbind(-1)
    grad_output = torch.randn(*codes.shape[:2], case.hidden, device=codes.device).to(case.dtype)

    def eager() -> Tensor:
        return F.embedding(rows[0], padded[0], padding_idx=0) + F.embedding(rows[1], padded[1], padding_idx=0)

    def step(forward: Callable[[], Tensor], tables: list[torch.nn.Parameter]) -> Callable[[], object]:
        return lambda: _backward(forward(), grad_output, tables) if backward else _without_gradients(forward)

    chosen = {"ours": step(lambda: ops.code_pair_embedding(codes, *weights), weights)}
    if on_gpu() and backward:
        chosen["ours, atomic"] = step(lambda: ops.code_pair_embedding(codes, *weights, deterministic=False), weights)
    return chosen | {
        "eager": step(eager, padded),
        "torch.compile": step(torch.compile(eager), padded),
        "copy": copy_of(case.bytes(codes)[backward]),
    }


def _without_gradients(forward: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return forward()


def _backward(out: Tensor, grad_output: Tensor, tables: list[torch.nn.Parameter]) -> None:
    out.backward(grad_output)
    for weight in tables:
        if hasattr(weight, "main_grad"):
            if not weight.grad_added_to_main_grad:  # Megatron's DDP, after each micro-batch
                weight.main_grad.add_(weight.grad)
            weight.grad_added_to_main_grad = False
        weight.grad = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1] if on_gpu() else [1, 2][: os.cpu_count()])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--processor-time", action="store_true", help="instead of wall time; for one thread")
    parser.add_argument("--output", type=Path, default=None, help="JSON; default benchmarks/results/code_pair_….json")
    args = parser.parse_args()
    clock = core_milliseconds if args.processor_time and not on_gpu() else milliseconds
    platform.keep_freed_memory()  # as the training loop does
    results = []
    for threads, case, backward in ((t, c, b) for t in args.threads for c in CASES for b in (False, True)):
        torch.set_num_threads(threads)
        what = f"{'forward + backward' if backward else 'forward'}, {case}"
        times = medians(forms(case, backward=backward), args.repeats, clock)
        num_bytes = case.bytes(case.codes())[backward]
        results.append({"case": what, "threads": threads, "bytes": num_bytes, "median_ms": times})
        print(row(f"{what}, {threads} thr.", times), flush=True)
    if not on_gpu():
        results += [not_measured(f"forward + backward, {case}, on a GPU", GPU_FORMS) for case in CASES]
    save("code_pair", args.output, results, repeats=args.repeats, clock=clock.__name__, rows=ROWS)


if __name__ == "__main__":
    main()
