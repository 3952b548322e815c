"""Adds rows of a gradient into rows of a table, in place: the backward of an embedding, and of `main_grad`.

Equal rows are brought together by a stable sort, then each is summed in fp32 in token order by one task: deterministic
on every number of threads, and one rounding per row however often it occurs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_aqaa.ops.library import built_with_cuda, load_extension

load_extension("_C")
_NAME = "megatron_aqaa::accumulate_rows_"


def accumulate_rows_(destination: Tensor, gradient: Tensor, rows: Tensor, *, scale: float = 1.0) -> None:
    """`destination[rows[t]] += scale * gradient[t]` for every t with `rows[t] >= 0`.

    Args:
        destination: [R, H], contiguous; fp32 or the dtype of `gradient`.
        gradient: [T, H].
        rows: [T] int64 below R; negative ones are skipped.
        scale: factor on the sum.
    """
    ascending, order = torch.sort(rows, stable=True)
    torch.ops.megatron_aqaa.accumulate_rows_(destination, gradient, ascending, order, scale)


def accumulate_rows_reference_(
    destination: Tensor, gradient: Tensor, rows: Tensor, order: Tensor, scale: float
) -> None:
    """The same in plain PyTorch; arguments as the operator's schema has them."""
    sum_dtype = torch.promote_types(gradient.dtype, torch.float32)
    kept = rows >= 0
    unique, segment = torch.unique_consecutive(rows[kept], return_inverse=True)
    sums = torch.zeros(unique.numel(), gradient.shape[1], dtype=sum_dtype, device=gradient.device)
    sums.index_add_(0, segment, gradient[order[kept]].to(sum_dtype))
    destination[unique] = (destination[unique].to(sum_dtype) + scale * sums).to(destination.dtype)


def _fake(destination: Tensor, gradient: Tensor, rows: Tensor, order: Tensor, scale: float) -> None:
    return None


torch.library.register_fake(_NAME, _fake)
if not built_with_cuda():
    torch.library.register_kernel(_NAME, "cuda", accumulate_rows_reference_)
