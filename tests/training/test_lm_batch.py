"""Group positions of micro-batches: whole runs and torn ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_aqaa.ops import positions_in_group
from megatron_aqaa.training.lm_batch import group_positions
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=60, linguistic_size=16, semantic_size=32, size=110, audio_start=108, audio_end=109)
IDS = {"t": 5, "L": 60, "S": 76, "|": 109}


def places(kinds: str) -> str:
    """Positions of a row that is written as one letter a token."""
    token_ids = torch.tensor([[IDS[kind] for kind in kinds]])
    return "".join("." if place < 0 else str(place) for place in group_positions(token_ids, VOCABULARY)[0].tolist())


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("tLLSSSLLSSSt", ".0123401234."),
        ("LLSSSLLSSS|t", "0123401234.."),
        ("LLSSSLLSSS", "0123401234"),
        ("LSSSLLSSS|tt", "123401234..."),  # torn at the beginning, in every place
        ("SSSLLSSS|ttL", "23401234...0"),
        ("SSLLSSS|tLLS", "3401234..012"),
        ("SLLSSS|", "401234."),
        ("SS|tLLSSS", "34..01234"),  # no further group shows the border: the run's end does
        ("S|LLSSS", "4.01234"),
        ("ttLLSSSLL", "..0123401"),  # torn at the end
        ("LLSSSLLS", "01234012"),
        ("tttt", "...."),
        ("|", "."),
    ],
)
def test_places(kinds: str, expected: str) -> None:
    assert places(kinds) == expected


def test_rows_are_independent_and_whole_documents_are_counted_plainly() -> None:
    random = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(20):
        parts: list[Tensor] = []
        for _ in range(6):
            groups = torch.tensor([[60, 61, 76, 77, 78]]).expand(int(torch.randint(4, (), generator=random)), 5)
            parts += [groups.reshape(-1), torch.full((int(torch.randint(1, 4, (), generator=random)),), 5)]
        rows.append(torch.cat([*parts, torch.full((80,), 5)])[:64])
    token_ids = torch.stack(rows)
    plain = positions_in_group(token_ids, VOCABULARY.linguistic_start, VOCABULARY.audio_stop)
    assert (plain >= 0).any()
    assert torch.equal(group_positions(token_ids, VOCABULARY), plain)


def test_no_rows() -> None:
    assert group_positions(torch.zeros(0, 8, dtype=torch.int64), VOCABULARY).shape == (0, 8)
