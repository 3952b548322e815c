"""Merged ids → flat ids, by hand."""

from __future__ import annotations

import pytest

from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.cosyvoice.token_ids import flat_ids

V = Vocabulary()


def test_flat_ids_by_hand() -> None:
    l, s = V.linguistic_start, V.semantic_start  # noqa: E741
    merged = [l, l + 1023, s, s + 4095, s + 7, l + 5, l + 6, s + 1, s + 2, s + 3]
    assert flat_ids(merged, V).tolist() == [0, 1023, 1024, 5119, 1031, 5, 6, 1025, 1026, 1027]
    assert flat_ids([], V).tolist() == []


def test_what_is_out_of_order_is_named() -> None:
    l, s = V.linguistic_start, V.semantic_start  # noqa: E741
    with pytest.raises(ValueError, match="position 8 is no audio token"):
        flat_ids([l, l, s, s, s, l, l, s, s + 4096, s], V)
    with pytest.raises(ValueError, match="position 1"):
        flat_ids([l, s, s, s, s], V)
