"""The two forms in which the full-size flow model takes tokens: one stream of flat ids, or two columns in time.

flat      l0 l1 s0 s1 s2     five positions of 24 ms for a group, 41.67 Hz
columns   l0 l1 −1           three positions of 40 ms, 25 Hz
s0 s1 s2
"""

from __future__ import annotations

from typing import Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn

from megatron_aqaa.ops import code_pair_embedding
from megatron_aqaa.ops.index import deinterleave_codes
from megatron_aqaa.vocabulary import (
    GROUP_DURATION_S,
    GROUP_SIZE,
    LINGUISTIC_PER_GROUP,
    SEMANTIC_PER_GROUP,
    Vocabulary,
)

TokenForm = Literal["flat", "columns"]
ABSENT = -1

POSITIONS_PER_GROUP: dict[TokenForm, int] = {"flat": GROUP_SIZE, "columns": SEMANTIC_PER_GROUP}


def token_rate_hz(form: TokenForm) -> float:
    """Positions in a second."""
    return POSITIONS_PER_GROUP[form] / GROUP_DURATION_S


def flow_tokens(token_ids: npt.ArrayLike, vocabulary: Vocabulary, form: TokenForm = "flat") -> Tensor:
    """Merged ids as the flow model takes them.

    Args:
        token_ids: [5 G] merged ids in groups `[L L S S S]`.
        vocabulary: layout of the merged ids.
        form: see the module's docstring.

    Returns:
        [5 G] int64 flat ids, linguistic codes as they are and semantic codes behind them; or [3 G, 2] int64 pairs of
        codes, −1 where there is none.

    Raises:
        ValueError: an id breaks the group structure; names its position.
    """
    linguistic, semantic = group_codes(token_ids, vocabulary)
    if form == "flat":
        return torch.cat((linguistic, semantic + vocabulary.linguistic_size), dim=1).flatten()
    return in_columns(linguistic, semantic)


def in_columns(linguistic: Tensor, semantic: Tensor) -> Tensor:
    """[..., G, 2] and [..., G, 3] codes → [..., 3 G, 2] pairs, −1 beside the last semantic code of a group."""
    missing = torch.full_like(semantic[..., : SEMANTIC_PER_GROUP - LINGUISTIC_PER_GROUP], ABSENT)
    return torch.stack((torch.cat((linguistic, missing), dim=-1), semantic), dim=-1).flatten(-3, -2)


def group_codes(token_ids: npt.ArrayLike, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """[G, 2] linguistic and [G, 3] semantic codes of merged ids; errors as in `flow_tokens`."""
    codes = deinterleave_codes(token_ids, **vocabulary.audio_range)
    return (
        torch.from_numpy(codes.linguistic).view(-1, LINGUISTIC_PER_GROUP),
        torch.from_numpy(codes.semantic).view(-1, SEMANTIC_PER_GROUP),
    )


def check_tokens(tokens: Tensor, form: TokenForm, vocab_size: int, linguistic_size: int) -> None:
    """Raises ValueError for tokens of the other form, or the first one out of range; waits for a GPU."""
    shape = {"flat": "[B, S]", "columns": "[B, S, 2]"}[form]
    if tokens.dim() != shape.count(",") + 1:
        raise ValueError(f"tokens of shape {list(tokens.shape)}; {form}: {shape}")
    if form == "flat":
        _check_range(tokens, "flat ids", 0, vocab_size)
        return
    _check_range(tokens[..., 0], "linguistic codes", ABSENT, linguistic_size)
    _check_range(tokens[..., 1], "semantic codes", ABSENT, vocab_size - linguistic_size)


def _check_range(ids: Tensor, name: str, start: int, stop: int) -> None:
    wrong = ids[(ids < start) | (ids >= stop)]
    if len(wrong):
        raise ValueError(f"token {int(wrong[0])}: {name} are {start} … {stop - 1}")


class PairEmbedding(nn.Module):
    """Sum of the embeddings of a linguistic and a semantic code; an absent one adds nothing."""

    def __init__(self, linguistic_size: int, semantic_size: int, size: int) -> None:
        super().__init__()
        self.linguistic, self.semantic = nn.Embedding(linguistic_size, size), nn.Embedding(semantic_size, size)

    def forward(self, codes: Tensor) -> Tensor:
        """[B, S, 2] → [B, S, E]."""
        return code_pair_embedding(codes, self.linguistic.weight, self.semantic.weight)
