"""Core attention of the layer spec: square-root ALiBi, packed documents, grouped queries, context parallelism."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_aqaa.model.alibi import SqrtAlibi
from megatron_aqaa.platform import zigzag_order

Backend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""(query [Sq, B, heads, D], key and value [Sk, B, groups, D], document_ids [B, Sk] or None, scale) → like query.

A back end is made from a `SqrtAlibi`, which says where the queries lie among the keys; one object serves all layers, so
that what they share is made once per micro-batch.
"""


class SqrtAlibiAttention(MegatronModule):
    """Causal attention within documents, with scores that fall with the square root of the distance.

    Megatron's `attention_mask` argument carries `document_ids` [B, Sk] of all keys, or None for one document per row:
    a query attends to the keys of its own document at or before it. With a KV cache Sq < Sk and the queries are the
    last Sq positions. Under context parallelism queries, keys and values are this rank's zig-zag part, while
    `document_ids` cover the whole sequence.

    Args:
        config: Megatron configuration.
        backend: computes it, for this rank's heads.
        softmax_scale: factor on `q·k`; None for 1/√D.
        pg_collection: Megatron process groups.
    """

    def __init__(
        self,
        config: TransformerConfig,
        backend: Backend,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.backend = backend
        self.scale = softmax_scale or config.kv_channels**-0.5
        self.cp_group = pg_collection.cp if pg_collection is not None and config.context_parallel_size > 1 else None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """[Sq, B, heads, D] and [Sk, B, groups, D] twice to [Sq, B, heads · D]."""
        if self.cp_group is not None:
            key, value = gather_zigzag(torch.cat([key, value], dim=2), self.cp_group).chunk(2, dim=2)
        return self.backend(query, key, value, attention_mask, self.scale).flatten(2)

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing to save."""
        return {}


@dataclass(frozen=True)
class ReferenceBackend:
    """The definition, in fp32 or wider: what the other back ends are tested against."""

    rule: SqrtAlibi

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor | None, scale: float) -> Tensor:
        """As `Backend` says."""
        wide = torch.promote_types(query.dtype, torch.float32)
        repeats = query.shape[2] // key.shape[2]
        q, k, v = (x.to(wide) for x in (query, key.repeat_interleave(repeats, 2), value.repeat_interleave(repeats, 2)))
        scores = torch.einsum("qbhd,kbhd->bhqk", q, k) * scale + self.rule.bias(query, key.shape[0], document_ids)
        return torch.einsum("bhqk,kbhd->qbhd", scores.softmax(-1), v).to(query.dtype)


class _GatherZigzag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, size = group, group.size()
        ranks = local.new_empty(size * local.shape[0], *local.shape[1:])
        dist.all_gather_into_tensor(ranks, local.contiguous(), group=group)
        return _reordered(ranks, _inverse(zigzag_order(size)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        size = ctx.group.size()
        ranks = _reordered(grad, zigzag_order(size))
        local = grad.new_empty(grad.shape[0] // size, *grad.shape[1:])
        dist.reduce_scatter_tensor(local, ranks, group=ctx.group)
        return local, None


def _reordered(whole: Tensor, order: list[int]) -> Tensor:
    """Equal parts of a sequence, in another order. No index tensor: a GPU would be waited for in every layer."""
    parts = whole.chunk(len(order))
    return torch.cat([parts[part] for part in order])


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def gather_zigzag(local: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All ranks' zig-zag parts [S/cp, ...] in sequence order [S, ...]; the gradient goes back to its owner."""
    return _GatherZigzag.apply(local, group)
