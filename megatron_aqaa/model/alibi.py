"""Square-root ALiBi, the position rule of Step-1: `scores = q·k/√d − slope[h]·√(i − j)` for keys `j ≤ i`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_aqaa.platform import zigzag_shard


def sqrt_alibi_slopes(num_heads: int) -> Tensor:
    """Slopes of all heads, [num_heads] float64, as published.

    With n the largest power of two up to `num_heads`: `2^(−8k/n)` for k = 1…n, then `2^(−4(2j+1)/n)` for the rest,
    j = 0…: the odd slopes of twice as many heads. (stepfun-ai/Step-Audio: `modeling_step1.py`.)
    """
    n = 2 ** math.floor(math.log2(num_heads))
    first = -8.0 / n * torch.arange(1, n + 1, dtype=torch.float64)
    rest = -4.0 / n * (2 * torch.arange(num_heads - n, dtype=torch.float64) + 1)
    return torch.exp2(torch.cat([first, rest]))


def sqrt_alibi_bias(slopes: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Bias [heads, Sq, Sk] in the dtype of `slopes`; −inf where the key lies after the query.

    Args:
        slopes: [heads].
        query_positions: [Sq] integers.
        key_positions: [Sk] integers.
    """
    distance = query_positions[:, None] - key_positions
    bias = -slopes[:, None, None] * distance.clamp_min(0).to(slopes.dtype).sqrt()
    return bias.masked_fill(distance < 0, -torch.inf)


class SqrtAlibiBias:
    """Bias of one rank's heads with documents folded in: made once per micro-batch, shared by all layers.

    Making it costs about as much as one layer's softmax, so layers must not each make their own.

    Args:
        slopes: [heads] of this tensor-parallel rank.
        context_parallel_rank: which zig-zag part of the queries this process holds.
        context_parallel_size: number of parts.
    """

    def __init__(self, slopes: Tensor, context_parallel_rank: int = 0, context_parallel_size: int = 1) -> None:
        self.slopes = slopes
        self.rank, self.size = context_parallel_rank, context_parallel_size
        self._causal: tuple[object, Tensor] | None = None
        self._folded: tuple[Tensor, Tensor, Tensor] | None = None

    @torch.inference_mode(False)  # what is kept may serve training next, which cannot save inference tensors
    def __call__(self, query: Tensor, num_keys: int, document_ids: Tensor | None) -> Tensor:
        """[B, heads, Sq, Sk] in the dtype and on the device of `query`.

        Args:
            query: [Sq, B, heads, D].
            num_keys: Sk; where it exceeds the queries, these are the last ones (or this rank's zig-zag part).
            document_ids: [B, Sk], or None: one document per row.
        """
        positions = self.query_positions(query.shape[0], num_keys, query.device)
        causal = self._causal_bias(positions, num_keys, query)
        if document_ids is None:
            return causal
        # Compared by value: recomputation hands over another tensor object, and a loader may reuse its buffer.
        if self._folded is None or self._folded[0] is not causal or not torch.equal(self._folded[1], document_ids):
            other_document = document_ids[:, positions, None] != document_ids[:, None, :]
            folded = causal.masked_fill(other_document[:, None], -torch.inf)
            self._folded = causal, document_ids.clone(), folded
        return self._folded[2]

    def query_positions(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
        """[Sq] positions of this process's queries among the keys."""
        if self.size == 1:
            return torch.arange(num_keys - num_queries, num_keys, device=device)
        assert num_queries * self.size == num_keys, "incremental decoding does not combine with context parallelism"
        return zigzag_shard(torch.arange(num_keys, device=device), 0, self.rank, self.size)

    def _causal_bias(self, positions: Tensor, num_keys: int, query: Tensor) -> Tensor:
        """Laid out for every row of the batch, so that a layer can let its product start from it."""
        batch, dtype, device = query.shape[1], query.dtype, query.device
        key = (positions.shape[0], num_keys, batch, dtype, device)
        if self._causal is None or self._causal[0] != key:
            slopes = self.slopes.to(device, torch.promote_types(dtype, torch.float32))
            bias = sqrt_alibi_bias(slopes, positions, torch.arange(num_keys, device=device)).to(dtype)
            self._causal = key, bias.repeat(batch, 1, 1, 1)
        return self._causal[1]
