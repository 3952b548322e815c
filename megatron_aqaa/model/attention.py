"""Core attention of the layer spec: square-root ALiBi, packed documents, grouped queries, context parallelism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_aqaa.model.alibi import SqrtAlibiBias
from megatron_aqaa.platform import zigzag_order
from megatron_aqaa.platform.device import has_gpu

Backend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""(query [Sq, B, heads, D], key and value [Sk, B, groups, D], bias [B, heads, Sq, Sk], scale) → like query."""


class SqrtAlibiAttention(MegatronModule):
    """Attention within documents, causal, with a bias that all layers share.

    Megatron's `attention_mask` argument carries `document_ids` [B, Sk] of all keys, or None for one document per row:
    a query attends to the keys of its own document at or before it. With a KV cache Sq < Sk and the queries are the
    last Sq positions. Under context parallelism queries, keys and values are this rank's zig-zag part, while
    `document_ids` cover the whole sequence.

    Args:
        config: Megatron configuration.
        bias: additive bias of this rank's heads.
        softmax_scale: factor on `q·k`; None for 1/√D.
        pg_collection: Megatron process groups.
    """

    def __init__(
        self,
        config: TransformerConfig,
        bias: SqrtAlibiBias,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        backend: Backend | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.bias = bias
        self.scale = softmax_scale or config.kv_channels**-0.5
        self.cp_group = pg_collection.cp if pg_collection is not None and config.context_parallel_size > 1 else None
        # FlexAttention has no backward on the CPU (torch 2.13); there explicit products are 1.9× faster than SDPA
        # with a mask, forward and backward, at [S, B] = [256, 8], 8 heads of 32, bf16.
        self.backend = backend or (sdpa_attention if has_gpu() else explicit_attention)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """[Sq, B, heads, D] and [Sk, B, groups, D] twice to [Sq, B, heads · D]."""
        if self.cp_group is not None:
            key, value = gather_zigzag(torch.cat([key, value], dim=2), self.cp_group).chunk(2, dim=2)
        bias = self.bias(query, key.shape[0], attention_mask)
        return self.backend(query, key, value, bias, self.scale).flatten(2)

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing to save."""
        return {}


def reference_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """The definition, in fp32 or wider: what the other back ends are tested against."""
    wide = torch.promote_types(query.dtype, torch.float32)
    repeats = query.shape[2] // key.shape[2]
    q, k, v = (x.to(wide) for x in (query, key.repeat_interleave(repeats, 2), value.repeat_interleave(repeats, 2)))
    scores = torch.einsum("qbhd,kbhd->bhqk", q, k) * scale + bias.to(wide)
    return torch.einsum("bhqk,kbhd->qbhd", scores.softmax(-1), v).to(query.dtype)


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Two batched products around a softmax; the queries of one key group are rows of one product."""
    (num_queries, batch, heads, width), (num_keys, _, groups, _) = query.shape, key.shape
    rows = heads // groups * num_queries
    q = query.permute(1, 2, 0, 3).reshape(batch * groups, rows, width)
    k = key.permute(1, 2, 3, 0).reshape(batch * groups, width, num_keys)
    v = value.permute(1, 2, 0, 3).reshape(batch * groups, num_keys, width)
    # The product starts from the bias: adding it afterwards, in place on a view, makes autograd copy the scores.
    scores = torch.baddbmm(bias.view(batch * groups, rows, num_keys), q, k, alpha=scale)
    return torch.bmm(torch.softmax(scores, -1), v).view(batch, heads, num_queries, width).permute(2, 0, 1, 3)


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """PyTorch's own, with the bias as a mask."""
    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    grouped = query.shape[2] != key.shape[2]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=grouped)
    return out.permute(2, 0, 1, 3)


class _GatherZigzag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, size = group, group.size()
        ranks = local.new_empty(size * local.shape[0], *local.shape[1:])
        dist.all_gather_into_tensor(ranks, local.contiguous(), group=group)
        order = torch.tensor(zigzag_order(size), device=local.device)
        return ranks.unflatten(0, (2 * size, -1))[order.argsort()].flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        size = ctx.group.size()
        order = torch.tensor(zigzag_order(size), device=grad.device)
        ranks = grad.unflatten(0, (2 * size, -1))[order].flatten(0, 1)
        local = grad.new_empty(grad.shape[0] // size, *grad.shape[1:])
        dist.reduce_scatter_tensor(local, ranks, group=ctx.group)
        return local, None


def gather_zigzag(local: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All ranks' zig-zag parts [S/cp, ...] in sequence order [S, ...]; the gradient goes back to its owner."""
    return _GatherZigzag.apply(local, group)
