"""Adds rows of a gradient into rows of a table, in place: the backward of an embedding, and of `main_grad`.

Equal rows are brought together by a stable sort, then summed in fp32 (fp64 for fp64) in token order and rounded once,
however often a row occurs. A row of many occurrences is cut at fixed places into pieces that are summed apart, so that
no row is one task: the result is the same on every number of threads, and on every launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_aqaa.ops.library import built_with_cuda, load_extension

load_extension("_C")
_NAME = "megatron_aqaa::accumulate_rows_"


def accumulate_rows_(
    destination: Tensor, gradient: Tensor, rows: Tensor, *, scale: float = 1.0, deterministic: bool = True
) -> None:
    """`destination[rows[t]] += scale * gradient[t]` for every t with `rows[t] >= 0`.

    Args:
        destination: [R, H], contiguous; in the dtype of `gradient`, or one of the two is fp32 and the other bf16 or
            fp16.
        gradient: [T, H]; the columns of a wider one will do.
        rows: [T] int64 below R; negative ones are skipped.
        scale: factor on the sum.
        deterministic: False spares a GPU the sort and adds atomically where `destination` is fp32 or fp64: the last
            bits then change from call to call. Elsewhere, on the CPU above all, it changes nothing.
    """
    ascending, order = rows, None
    if deterministic or not _adds_atomically(destination):
        ascending, order = torch.sort(rows, stable=True)
    torch.ops.megatron_aqaa.accumulate_rows_(destination, gradient, ascending, order, scale)


def _adds_atomically(destination: Tensor) -> bool:
    return destination.is_cuda and destination.dtype in (torch.float32, torch.float64)


def accumulate_rows_reference_(
    destination: Tensor, gradient: Tensor, rows: Tensor, order: Tensor | None, scale: float
) -> None:
    """The same in plain PyTorch; arguments as the operator's schema has them."""
    if order is None:
        rows, order = torch.sort(rows, stable=True)
    sum_dtype = torch.promote_types(gradient.dtype, torch.float32)
    kept = (rows >= 0) & (rows < destination.shape[0])  # as a GPU does; the CPU refuses rows past the end
    unique, segment = torch.unique_consecutive(rows[kept], return_inverse=True)
    sums = torch.zeros(unique.numel(), gradient.shape[1], dtype=sum_dtype, device=gradient.device)
    sums.index_add_(0, segment, gradient[order[kept]].to(sum_dtype))
    destination[unique] = (destination[unique].to(sum_dtype) + scale * sums).to(destination.dtype)


def _fake(destination: Tensor, gradient: Tensor, rows: Tensor, order: Tensor | None, scale: float) -> None:
    return None


torch.library.register_fake(_NAME, _fake)
if not built_with_cuda():
    torch.library.register_kernel(_NAME, "cuda", accumulate_rows_reference_)
