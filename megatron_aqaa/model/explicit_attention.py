"""Back end for the CPU: batched products around a softmax, with a bias that all layers share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_aqaa.model.alibi import SqrtAlibi, sqrt_alibi_bias
from megatron_aqaa.model.micro_batch_cache import MicroBatchCache

ROWS = 64
"""Queries of one block: 32 and 128 take longer at 256 tokens."""


class RowBlock(NamedTuple):
    """Consecutive queries with the keys up to the last one that any of them sees."""

    positions: Tensor
    """[rows] of the queries, on the CPU."""
    bias: Tensor
    """[B, heads, rows, keys], laid out for every row of the batch, so that a product can start from it."""


class ExplicitBackend:
    """Two batched products around a softmax; the queries of one key group are rows of one product.

    Queries are taken in blocks and later keys left out: causal attention needs little more than half of the products.
    Forward and backward at [S, B] = [256, 8], 8 heads in 4 groups of 32, bf16, packed, one core (2026-11): 13 ms; in
    one piece and by autograd 20 ms, SDPA with the bias as its mask 42 ms.
    """

    def __init__(self, rule: SqrtAlibi) -> None:
        self.rule = rule
        self._causal = MicroBatchCache(self._causal_blocks)
        self._folded = MicroBatchCache(self._with_documents)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor | None, scale: float) -> Tensor:
        """As `attention.Backend` says."""
        groups = key.shape[2]
        q = query.permute(1, 2, 0, 3).unflatten(1, (groups, -1)).flatten(0, 1)
        # copied also where a step of decoding reads each key once: products of strided bf16 keys take three times as
        # long (128 rows, 120 keys, one core, 2026-11: 8.0 → 2.7 ms; one row: .087 → .084 ms)
        k, v = (x.permute(1, 2, 0, 3).flatten(0, 1).contiguous() for x in (key, value))
        biases = [
            block.bias.unflatten(1, (groups, -1)).flatten(2, 3).flatten(0, 1)
            for block in self._folded(query, key.shape[0], document_ids)
        ]
        out: Tensor = _Products.apply(q, k, v, biases, scale)
        return out.view(query.shape)

    def _causal_blocks(self, query: Tensor, num_keys: int, _: Tensor | None) -> list[RowBlock]:
        """Kept as long as the shapes stay: the square roots are dearer than the documents."""
        slopes, positions = self.rule.slopes_for(query), self.rule.query_positions(query.shape[0], num_keys)
        blocks = []
        for rows in positions.split(ROWS):
            seen = torch.arange(int(rows.max()) + 1, device=query.device)
            bias = sqrt_alibi_bias(slopes, rows.to(query.device), seen).to(query.dtype)
            blocks.append(RowBlock(rows, bias.repeat(query.shape[1], 1, 1, 1)))
        return blocks

    def _with_documents(self, query: Tensor, num_keys: int, document_ids: Tensor | None) -> list[RowBlock]:
        blocks = self._causal(query, num_keys, None)
        return blocks if document_ids is None else [_within(block, document_ids) for block in blocks]


def _within(block: RowBlock, document_ids: Tensor) -> RowBlock:
    """The block with keys of other documents masked."""
    of_queries = document_ids[:, block.positions.to(document_ids.device), None]
    other = of_queries != document_ids[:, None, : block.bias.shape[3]]
    return block._replace(bias=block.bias.masked_fill(other[:, None], -torch.inf))


class _Products(torch.autograd.Function):
    """Products of all blocks. Their gradients are added up in place, where autograd would pad and add slices.

    q [P, shared, Sq, D] and k, v [P, Sk, D], P being rows of the batch times key groups, and one bias per block
    [P, shared · rows, keys] give [Sq, P, shared, D].
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, biases: list[Tensor], scale: float) -> Tensor:
        out, start = q.new_empty(q.shape[2], *q.shape[:2], q.shape[3]), 0
        kept = []
        for bias in biases:
            (_, num_rows, num_keys), shared = bias.shape, q.shape[1]
            stop = start + num_rows // shared
            rows = q[:, :, start:stop].flatten(1, 2)
            weights = torch.baddbmm(bias, rows, k[:, :num_keys].mT, alpha=scale).softmax(-1)
            out[start:stop] = torch.bmm(weights, v[:, :num_keys]).unflatten(1, (shared, -1)).permute(2, 0, 1, 3)
            kept += [rows, weights]
            start = stop
        ctx.save_for_backward(k, v, *kept)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        k, v, *kept = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(grad_out), torch.zeros_like(k), torch.zeros_like(v)
        start, shared = 0, grad_out.shape[2]
        for rows, weights in zip(kept[::2], kept[1::2], strict=True):
            stop, num_keys = start + rows.shape[1] // shared, weights.shape[2]
            grad = grad_out[start:stop].permute(1, 2, 0, 3).flatten(1, 2)
            grad_v[:, :num_keys].baddbmm_(weights.mT, grad)
            grad_weights = torch.bmm(grad, v[:, :num_keys].mT)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_rows = torch.bmm(grad_scores, k[:, :num_keys]).mul_(ctx.scale)
            grad_q[start:stop] = grad_rows.unflatten(1, (shared, -1)).permute(2, 0, 1, 3)
            grad_k[:, :num_keys].baddbmm_(grad_scores.mT, rows, alpha=ctx.scale)
            start = stop
        return grad_q.permute(1, 2, 0, 3), grad_k, grad_v, None, None
