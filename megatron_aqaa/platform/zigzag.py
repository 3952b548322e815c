"""How a sequence is cut over context-parallel processes."""

from __future__ import annotations

import torch
from torch import Tensor


def zigzag_order(parts: int) -> list[int]:
    """Order of `2 · parts` sequence chunks when laid out rank by rank: rank r holds chunks r and 2·parts − 1 − r.

    Causal attention costs more for later queries; the pairing gives every context-parallel rank the same work.
    """
    return [chunk for rank in range(parts) for chunk in (rank, 2 * parts - 1 - rank)]


def zigzag_shard(sequence: Tensor, dim: int, rank: int, parts: int) -> Tensor:
    """Part of `sequence` that context-parallel `rank` of `parts` works on.

    Raises:
        ValueError: the length is not a multiple of `2 · parts`.
    """
    if parts == 1:
        return sequence
    if sequence.shape[dim] % (2 * parts):
        raise ValueError(f"length {sequence.shape[dim]} must be a multiple of 2 × context_parallel_size = {2 * parts}")
    chunks = sequence.chunk(2 * parts, dim)
    return torch.cat([chunks[rank], chunks[2 * parts - 1 - rank]], dim)
