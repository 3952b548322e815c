"""Core attention side by side with its peers in one run: medians, ratios, JSON.

    python benchmarks/attention.py                 # the CPU's back ends, or the GPU's where there is one
    python benchmarks/attention.py --repeats 40

Forward and backward of one layer, causal and packed, with what layers share (bias, mask, block mask) made beforehand,
as it is for all layers but the first. Megatron's own module knows no bias: it does less than the others, and its time
is a lower bound for a peer of its kind with one. Rows that this machine cannot run are written as "not measured".
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from side_by_side import core_milliseconds, medians, milliseconds, not_measured, on_gpu, row, save
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_aqaa import platform
from megatron_aqaa.model.alibi import SqrtAlibi, sqrt_alibi_slopes
from megatron_aqaa.model.attention import Backend
from megatron_aqaa.model.explicit_attention import ExplicitBackend
from megatron_aqaa.model.flex_attention import FlexBackend

Backends = dict[str, Backend]


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


def eager(bias: Tensor) -> Backend:
    """Two products around a softmax in fp32, as one writes it down."""

    def attend(query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor | None, scale: float) -> Tensor:
        key, value = (x.repeat_interleave(query.shape[2] // key.shape[2], 2) for x in (key, value))
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        scores = q @ k.mT * scale + bias
        return (scores.float().softmax(-1).to(v.dtype) @ v).permute(2, 0, 1, 3)

    return attend


def megatron(shape: Shape) -> Backend:
    """Megatron's module without Transformer Engine, with the mask of causal attention within documents."""
    low_precision = shape.dtype is torch.bfloat16
    config = TransformerConfig(
        num_layers=1, hidden_size=shape.heads * shape.width, num_attention_heads=shape.heads,
        num_query_groups=shape.groups, kv_channels=shape.width, attention_dropout=0.0, bf16=low_precision,
        params_dtype=shape.dtype,
    )  # fmt: skip
    module = DotProductAttention(config, 1, AttnMaskType.padding, "self")
    ids = shape.document_ids()
    later = torch.ones(shape.length, shape.length, dtype=torch.bool).triu(1)
    hidden = (later | (ids[:, :, None] != ids[:, None, :]))[:, None]
    return lambda query, key, value, *_: module(query, key, value, hidden).view(query.shape)


def cpu_forms(shape: Shape) -> Backends:
    rule = SqrtAlibi(sqrt_alibi_slopes(shape.heads))
    query = torch.empty(shape.length, shape.batch, shape.heads, shape.width, dtype=shape.dtype)
    bias = rule.bias(query, shape.length, shape.document_ids()).to(shape.dtype)
    return {
        "explicit": ExplicitBackend(rule),
        "SDPA, dense bias": sdpa(bias, SDPBackend.MATH, SDPBackend.FLASH_ATTENTION),
        "eager": eager(bias),
        "torch.compile": torch.compile(eager(bias), dynamic=False),
        "Megatron, without bias": megatron(shape),
    }


GPU_FORMS = ("flex", "SDPA flash, no bias", "SDPA cuDNN, no bias", "SDPA, dense bias")


def gpu_forms(shape: Shape) -> Backends:
    """The forms of the 130B shape; what Megatron's module holds of it does not fit on one GPU."""
    rule = SqrtAlibi(sqrt_alibi_slopes(shape.heads))
    query = torch.empty(shape.length, shape.batch, shape.heads, 0, dtype=shape.dtype, device=platform.device())
    bias = rule.bias(query, shape.length).to(shape.dtype)
    backends = (
        FlexBackend(rule),
        sdpa(None, SDPBackend.FLASH_ATTENTION),
        sdpa(None, SDPBackend.CUDNN_ATTENTION),
        sdpa(bias, SDPBackend.EFFICIENT_ATTENTION, repeat=True),
    )
    return dict(zip(GPU_FORMS, backends, strict=True))


def step(backend: Backend, shape: Shape) -> Callable[[], object]:
    """Forward and backward of one layer."""
    *tensors, grad = shape.tensors()
    document_ids = shape.document_ids()
    return lambda: torch.autograd.grad(backend(*tensors, document_ids, shape.width**-0.5), tensors, grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1] if on_gpu() else [1, 2][: os.cpu_count()])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--processor-time", action="store_true", help="instead of wall time; for one thread")
    parser.add_argument("--output", type=Path, default=None, help="JSON; default benchmarks/results/attention_….json")
    args = parser.parse_args()
    clock = core_milliseconds if args.processor_time and not on_gpu() else milliseconds
    platform.initialize(platform.ParallelConfig())
    print("--- forward and backward; (n x): time over the first")
    results = []
    for threads, shape in ((t, s) for t in args.threads for s in ([GPU] if on_gpu() else CPU)):
        torch.set_num_threads(threads)
        backends = gpu_forms(shape) if on_gpu() else cpu_forms(shape)
        times = medians({name: step(backend, shape) for name, backend in backends.items()}, args.repeats, clock)
        results.append({"case": str(shape), "threads": threads, "median_ms": times})
        print(row(f"{shape}, {threads} thr.", times), flush=True)
    if not on_gpu():
        results.append(not_measured(f"{GPU}, on a GPU", GPU_FORMS))
    save("attention", args.output, results, repeats=args.repeats, clock=clock.__name__)
    platform.shutdown()


if __name__ == "__main__":
    main()
