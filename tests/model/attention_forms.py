"""Back ends, inputs and packed documents that several test files share; FlexAttention with a backward on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from megatron_aqaa.model.alibi import SqrtAlibi
from megatron_aqaa.model.attention import Backend, ReferenceBackend
from megatron_aqaa.model.explicit_attention import ExplicitBackend
from megatron_aqaa.model.flex_attention import FlexBackend


def uncompiled_flex(*args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's dense form of FlexAttention, step by step. It refuses gradients on the CPU for want of a kernel."""
    with (
        mock.patch.object(torch_flex, "_validate_device"),
        mock.patch.object(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
    ):
        return torch_flex.flex_attention(*args, **kwargs)


def uncompiled_flex_backend(rule: SqrtAlibi) -> FlexBackend:
    return FlexBackend(rule, uncompiled_flex)


BACKENDS: dict[str, Callable[[SqrtAlibi], Backend]] = {
    "reference": ReferenceBackend,
    "explicit": ExplicitBackend,
    "flex": uncompiled_flex_backend,
}


def inputs(
    num_queries: int,
    num_keys: int,
    *,
    batch: int = 2,
    heads: int = 6,
    groups: int = 2,
    width: int = 4,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> list[Tensor]:
    """Query, key, value: non-contiguous views, as Megatron's split of the fused projection gives them."""
    random = torch.Generator().manual_seed(num_queries)
    fused = torch.randn(num_keys, batch, groups, (heads // groups + 2) * width, dtype=torch.float64, generator=random)
    query, key, value = fused.to(device, dtype).split([heads // groups * width, width, width], dim=3)
    query = query.reshape(num_keys, batch, heads, width)[num_keys - num_queries :]
    return [query.requires_grad_(), key.requires_grad_(), value.requires_grad_()]


def packed(lengths: Sequence[int], padding_left: int = 0, padding_right: int = 0) -> list[int]:
    """One row of document ids."""
    documents = [number for number, length in enumerate(lengths) for _ in range(length)]
    return [-1] * padding_left + documents + [-1] * padding_right


def documents(length: int) -> Tensor:
    """[2, length]: documents of one token and of many, padding on either side."""
    middle = max(length - 9, 0)
    first = packed([1, 1, 2, middle // 3, middle - middle // 3], padding_left=2, padding_right=3)
    second = packed([middle // 2, 1, middle - middle // 2], padding_right=8)
    return torch.tensor([first[-length:], second[:length]])


def with_gradients(
    backend: Backend, tensors: Sequence[Tensor], document_ids: Tensor | None, scale: float = 0.5
) -> list[Tensor]:
    """Output, then the gradients of query, key and value for a weighted sum of it."""
    out = backend(*tensors, document_ids, scale)
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, list(tensors), weights.to(out.device, out.dtype))]
