"""Square-root ALiBi, the position rule of Step-1: `scores = q·k/√d − slope[h]·√(i − j)` for keys `j ≤ i`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_aqaa.platform import zigzag_shard


def sqrt_alibi_slopes(num_heads: int) -> Tensor:
    """Slopes of all heads, [num_heads] float64, as published.

    With n the largest power of two up to `num_heads`: `2^(−8k/n)` for k = 1…n, then `2^(−4(2j+1)/n)` for the rest,
    j = 0…: the odd slopes of twice as many heads. (stepfun-ai/Step-Audio: `modeling_step1.py`.)

    Raises:
        ValueError: there is no head.
    """
    if num_heads < 1:
        raise ValueError(f"slopes of {num_heads} heads: num_attention_heads must be at least 1")
    n = 1 << (num_heads.bit_length() - 1)
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


@dataclass(frozen=True, eq=False)
class SqrtAlibi:
    """What makes the scores besides `q·k`, for the heads and queries of one process; a back end uses it its own way.

    A query attends to the keys of its own document at or before it, itself among them: no row is ever masked whole,
    padding (document −1, a document like others) included.

    Attributes:
        slopes: [heads] float64 of this tensor-parallel rank; zeros for plain causal attention.
        context_parallel_rank: which zig-zag part of the queries this process holds.
        context_parallel_size: number of parts.
    """

    slopes: Tensor
    context_parallel_rank: int = 0
    context_parallel_size: int = 1

    def slopes_for(self, query: Tensor) -> Tensor:
        """[heads] on the device of `query`, in fp32 or wider."""
        return self.slopes.to(query.device, torch.promote_types(query.dtype, torch.float32))

    def query_positions(self, num_queries: int, num_keys: int) -> Tensor:
        """[Sq] places of this process's queries among the keys, on the CPU.

        Fewer queries than keys are the last ones (a KV cache), or this rank's zig-zag part.

        Raises:
            ValueError: both at once, or more queries than keys.
        """
        if num_queries * self.context_parallel_size > num_keys or (
            self.context_parallel_size > 1 and num_queries * self.context_parallel_size < num_keys
        ):
            raise ValueError(
                f"{num_queries} queries of {self.context_parallel_size} context-parallel ranks do not fit {num_keys} "
                "keys: decode with context_parallel_size = 1, and pass the keys of all ranks"
            )
        if self.context_parallel_size == 1:
            return torch.arange(num_keys - num_queries, num_keys)
        return zigzag_shard(torch.arange(num_keys), 0, self.context_parallel_rank, self.context_parallel_size)

    def bias(self, query: Tensor, num_keys: int, document_ids: Tensor | None = None) -> Tensor:
        """[B, heads, Sq, Sk] (B = 1 without documents) in fp32 or wider: the definition, made anew and dense.

        Args:
            query: [Sq, B, heads, D].
            num_keys: Sk.
            document_ids: [B, Sk], or None: one document per row.
        """
        positions = self.query_positions(query.shape[0], num_keys).to(query.device)
        bias = sqrt_alibi_bias(self.slopes_for(query), positions, torch.arange(num_keys, device=query.device))[None]
        if document_ids is None:
            return bias
        other_document = document_ids[:, positions, None] != document_ids[:, None, :]
        return bias.masked_fill(other_document[:, None], -torch.inf)
