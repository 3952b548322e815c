"""Back end for a GPU: FlexAttention, compiled. Scores are made from positions inside the kernel; no bias is stored."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from megatron_aqaa.model.alibi import SqrtAlibi
from megatron_aqaa.model.explicit_attention import ExplicitBackend
from megatron_aqaa.model.micro_batch_cache import MicroBatchCache

BLOCK = 128
"""Queries and keys of a block of the mask."""

_MIN_WIDTH = 16  # of a head: the smallest product that Triton makes
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Kernel = Callable[..., Tensor]


@functools.cache
def compiled_kernel() -> Kernel:
    """FlexAttention for training. `fullgraph`: after too many shapes it fails rather than run dense and uncompiled."""
    return torch.compile(flex_attention, fullgraph=True)


class FlexBackend:
    """FlexAttention with one block mask per micro-batch and, unless all slopes are zero, one score rule.

    One query (a step of decoding) takes the explicit products instead: its bias is a single row of Sk numbers per head,
    the step is bound by reading keys and values, and the compiled kernel would want a block mask for every new length.
    So do float64 and heads narrower than 16, which Triton's products do not know: sizes of tests.

    Args:
        rule: slopes and positions.
        kernel: FlexAttention in another form than compiled, for tests.
    """

    def __init__(self, rule: SqrtAlibi, kernel: Kernel | None = None) -> None:
        self.rule = rule
        self.explicit = ExplicitBackend(rule)
        self.kernel = kernel or compiled_kernel()
        self.only_triton = kernel is None
        self._positions = MicroBatchCache(self._make_positions)  # to copy them makes the host wait for the device
        self._score_mod = MicroBatchCache(self._make_score_mod)
        self._block_mask = MicroBatchCache(self._make_block_mask)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor | None, scale: float) -> Tensor:
        """As `attention.Backend` says."""
        beyond_triton = query.dtype is torch.float64 or query.shape[3] < _MIN_WIDTH
        if query.shape[0] == 1 or (self.only_triton and beyond_triton):
            return self.explicit(query, key, value, document_ids, scale)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = self.kernel(
            q,
            k,
            v,
            score_mod=self._score_mod(query, key.shape[0], None),
            block_mask=self._block_mask(query, key.shape[0], document_ids),
            scale=scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return out.permute(2, 0, 1, 3)

    def _make_positions(self, query: Tensor, num_keys: int, _: Tensor | None) -> Tensor:
        return self.rule.query_positions(query.shape[0], num_keys).to(query.device, torch.int32)

    def _make_score_mod(self, query: Tensor, num_keys: int, _: Tensor | None) -> ScoreMod | None:
        if not self.rule.slopes.any():
            return None
        slopes = self.rule.slopes_for(query)
        return sqrt_alibi_score_mod(slopes, self._positions(query, num_keys, None).to(slopes.dtype))

    def _make_block_mask(self, query: Tensor, num_keys: int, document_ids: Tensor | None) -> BlockMask:
        return document_block_mask(self._positions(query, num_keys, None), num_keys, document_ids)


def sqrt_alibi_score_mod(slopes: Tensor, query_positions: Tensor) -> ScoreMod:
    """`score − slope[h]·√(i − j)` for FlexAttention.

    Written for the inner loop of a GPU kernel: `√x` compiles to a correctly rounded root with a branch, `x·rsqrt(x)` to
    an approximate one and a product (at distance 0 the root is of 1, and the product still 0). The code of a loop like
    FlexAttention's, written by hand, compiled by Triton 3.7 for sm_90 and not run, is longer by 7 instructions a score
    this way, by 20 with `√x`, by 22 with a table of distances. Positions become floating point before they are
    subtracted, once per row and column and not once per pair; exact up to 2²⁴. They are a tensor in any case: captured
    numbers that vary make new code.

    Args:
        slopes: [heads] fp32 or wider.
        query_positions: [Sq] in the dtype of `slopes`.
    """

    def score_mod(score: Tensor, _: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query_positions[query] - key.to(query_positions.dtype)
        return score - slopes[head] * (distance * distance.clamp_min(1.0).rsqrt())

    return score_mod


def document_block_mask(query_positions: Tensor, num_keys: int, document_ids: Tensor | None) -> BlockMask:
    """Causal within documents, from the ranges of positions and ids in each block: [B, 1, Sq/128, Sk/128] at most.

    `create_block_mask` would first make a mask of all pairs, 1 GiB a row at 32k tokens. Judging by ranges a block may
    be looked at in vain where ids do not rise along the sequence (never skipped in error: pairs are masked one by one
    wherever a block is not known to be full).

    Args:
        query_positions: [Sq] int32 places of the queries among the keys.
        num_keys: Sk.
        document_ids: [B, Sk], or None: one document per row, and B = 1.
    """
    key_positions = torch.arange(num_keys, dtype=torch.int32, device=query_positions.device)
    q_low, q_high = (x[:, :, None] for x in _block_ranges(query_positions[None]))
    k_low, k_high = (x[:, None, :] for x in _block_ranges(key_positions[None]))
    some, full = k_low <= q_high, k_high <= q_low
    if document_ids is None:

        def mask_mod(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return key <= query_positions[query]

    else:
        of_keys = document_ids.to(torch.int32)
        of_queries = of_keys[:, query_positions]
        q_low, q_high = (x[:, :, None] for x in _block_ranges(of_queries))
        k_low, k_high = (x[:, None, :] for x in _block_ranges(of_keys))
        some = some & (k_low <= q_high) & (q_low <= k_high)
        full = full & (k_low == q_high) & (q_low == k_high)  # low ≤ high: all four are equal

        def mask_mod(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query_positions[query]) & (of_keys[b, key] == of_queries[b, query])

    full[:, -1:] &= len(query_positions) % BLOCK == 0  # ragged blocks are not full
    full[:, :, -1:] &= num_keys % BLOCK == 0
    return BlockMask.from_kv_blocks(
        *_listed(some & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(len(query_positions), num_keys),
    )


def _block_ranges(values: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each block: [B, S] to [B, ⌈S/128⌉] twice."""
    missing = -values.shape[1] % BLOCK
    whole = torch.cat([values, values[:, -1:].expand(-1, missing)], 1)
    low, high = whole.unflatten(1, (-1, BLOCK)).aminmax(dim=2)
    return low, high


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen key blocks [B, Q, K] bool as FlexAttention lists them: counts [B, 1, Q], indices first [B, 1, Q, K]."""
    indices = blocks.to(torch.int8).argsort(dim=2, descending=True, stable=True)
    return blocks.sum(2, dtype=torch.int32)[:, None], indices.to(torch.int32)[:, None]
