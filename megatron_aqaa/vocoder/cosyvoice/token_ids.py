"""Merged token ids → the flat ids of the full-size flow model."""

from __future__ import annotations

import numpy.typing as npt
import torch

from megatron_aqaa.ops.index import deinterleave_codes
from megatron_aqaa.vocabulary import GROUP_SIZE, LINGUISTIC_PER_GROUP, SEMANTIC_PER_GROUP, Vocabulary


def flat_ids(token_ids: npt.ArrayLike, vocabulary: Vocabulary) -> torch.Tensor:
    """Linguistic codes as they are, semantic codes behind them, in the order in which they came.

    Args:
        token_ids: [5 G] merged ids in groups `[L L S S S]`.
        vocabulary: layout of the merged ids.

    Returns:
        [5 G] int64, 0 … linguistic_size + semantic_size − 1.

    Raises:
        ValueError: an id breaks the group structure; names its position.
    """
    v = vocabulary
    codes = deinterleave_codes(token_ids, linguistic_start=v.linguistic_start, semantic_start=v.semantic_start)
    linguistic = torch.from_numpy(codes.linguistic).view(-1, LINGUISTIC_PER_GROUP)
    semantic = torch.from_numpy(codes.semantic).view(-1, SEMANTIC_PER_GROUP)
    too_large = (semantic >= v.semantic_size).nonzero()
    if len(too_large):
        group, place = too_large[0].tolist()
        found, position = int(semantic[group, place]), group * GROUP_SIZE + LINGUISTIC_PER_GROUP + place
        raise ValueError(
            f"id {found + v.semantic_start} at position {position} is no audio token; they end at {v.audio_stop - 1}"
        )
    return torch.cat((linguistic, semantic + v.linguistic_size), dim=1).flatten()
