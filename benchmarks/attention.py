"""Core attention side by side with its peers in one run: medians, ratios, JSON.

    python benchmarks/attention.py                 # the CPU's back ends, or the GPU's where there is one
    python benchmarks/attention.py --repeats 40

Forward and backward of one layer, causal and packed, with what layers share (bias, block mask) made beforehand, as it
is for all layers but the first. Rows that this machine cannot run are written as "not measured".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from side_by_side import medians, row, save
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_aqaa import platform
from megatron_aqaa.model.alibi import SqrtAlibi, sqrt_alibi_slopes
from megatron_aqaa.model.attention import Backend, ReferenceBackend
from megatron_aqaa.model.explicit_attention import ExplicitBackend
from megatron_aqaa.model.flex_attention import FlexBackend

Backends = dict[str, Backend | None]  # None: cannot run here


class Shape(NamedTuple):
    """Sizes of one layer on one rank; documents of `document` tokens."""

    length: int
    batch: int
    heads: int
    groups: int
    width: int
    dtype: torch.dtype
    document: int

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"[{self.length}, {self.batch}], {self.heads} heads / {self.groups} groups of {self.width}, {dtype}"

    def tensors(self) -> list[Tensor]:
        """Query, key, value as Megatron's fused projection gives them, and the gradient of the output."""
        random, device = torch.Generator().manual_seed(0), platform.device()
        shared = self.heads // self.groups * self.width
        fused = torch.randn(self.length, self.batch, self.groups, shared + 2 * self.width, generator=random)
        query, key, value = fused.to(device, self.dtype).split([shared, self.width, self.width], 3)
        query = query.reshape(self.length, self.batch, self.heads, self.width)
        grad = torch.randn(query.shape, generator=random).to(device, self.dtype)
        return [*(x.requires_grad_() for x in (query, key, value)), grad]

    def document_ids(self) -> Tensor:
        """[B, S]."""
        return (torch.arange(self.length) // self.document).repeat(self.batch, 1).to(platform.device())


CPU = [
    Shape(256, 8, 8, 4, 32, torch.bfloat16, 100),  # the miniature
    Shape(256, 8, 4, 2, 32, torch.bfloat16, 100),  # one of its two tensor-parallel ranks
    Shape(256, 8, 8, 4, 32, torch.float32, 100),
    Shape(1024, 1, 8, 4, 32, torch.float32, 400),
]
GPU = Shape(8192, 1, 96, 8, 128, torch.bfloat16, 8192)


def sdpa(bias: Tensor | None, *kernels: SDPBackend, repeat: bool = False) -> Backend:
    """PyTorch's own: with a dense bias as its mask, or causal without one."""

    def attend(query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor | None, scale: float) -> Tensor:
        if repeat:  # kernels that take a mask do not know grouped queries
            key, value = (x.repeat_interleave(query.shape[2] // key.shape[2], 2) for x in (key, value))
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        grouped = q.shape[1] != k.shape[1]
        options = {"attn_mask": bias, "is_causal": bias is None, "scale": scale, "enable_gqa": grouped}
        with sdpa_kernel(list(kernels)):
            return F.scaled_dot_product_attention(q, k, v, **options).permute(2, 0, 1, 3)

    return attend


def cpu_forms(shape: Shape) -> Backends:
    rule = SqrtAlibi(sqrt_alibi_slopes(shape.heads))
    query = torch.empty(shape.length, shape.batch, shape.heads, shape.width, dtype=shape.dtype)
    bias = rule.bias(query, shape.length, shape.document_ids()).to(shape.dtype)
    return {
        "explicit": ExplicitBackend(rule),
        "SDPA, dense bias": sdpa(bias, SDPBackend.MATH, SDPBackend.FLASH_ATTENTION),
        "reference": ReferenceBackend(rule),
    }


def gpu_forms(shape: Shape, *, runs: bool) -> Backends:
    """The forms of the 130B shape; without a GPU their names only."""
    if not runs:
        return dict.fromkeys(("flex", "SDPA flash, no bias", "SDPA cuDNN, no bias", "SDPA, dense bias"))
    rule = SqrtAlibi(sqrt_alibi_slopes(shape.heads))
    query = torch.empty(shape.length, shape.batch, shape.heads, 0, dtype=shape.dtype, device=platform.device())
    bias = rule.bias(query, shape.length).to(shape.dtype)
    return {
        "flex": FlexBackend(rule),
        "SDPA flash, no bias": sdpa(None, SDPBackend.FLASH_ATTENTION),
        "SDPA cuDNN, no bias": sdpa(None, SDPBackend.CUDNN_ATTENTION),
        "SDPA, dense bias": sdpa(bias, SDPBackend.EFFICIENT_ATTENTION, repeat=True),
    }


def step(backend: Backend, shape: Shape) -> Callable[[], object]:
    """Forward and backward of one layer."""
    *tensors, grad = shape.tensors()
    document_ids = shape.document_ids()
    return lambda: torch.autograd.grad(backend(*tensors, document_ids, shape.width**-0.5), tensors, grad)


def measure(shape: Shape, forms: Backends, repeats: int) -> dict[str, object]:
    """Prints the row of one shape; forms that cannot run here are named as not measured."""
    times = medians({name: step(backend, shape) for name, backend in forms.items() if backend}, repeats)
    left_out = [name for name, backend in forms.items() if not backend]
    print(row(str(shape), times, left_out), flush=True)
    return {"case": str(shape), "median_ms": times | dict.fromkeys(left_out, "not measured")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=None, help="JSON; default benchmarks/results/attention_….json")
    args = parser.parse_args()
    platform.initialize(platform.ParallelConfig())
    device = platform.device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    print(f"--- {device.type}, forward and backward; (n x): time over the first")
    results = [] if device.type == "cuda" else [measure(shape, cpu_forms(shape), args.repeats) for shape in CPU]
    results.append(measure(GPU, gpu_forms(GPU, runs=device.type == "cuda"), args.repeats))
    save("attention", args.output, results, threads=torch.get_num_threads(), repeats=args.repeats)
    platform.shutdown()


if __name__ == "__main__":
    main()
