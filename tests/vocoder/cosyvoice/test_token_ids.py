"""Merged ids → flat ids, by hand."""

from __future__ import annotations

import pytest

from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.cosyvoice.token_ids import flow_tokens, token_rate_hz

V = Vocabulary()


def test_flow_tokens_by_hand() -> None:
    l, s = V.linguistic_start, V.semantic_start  # noqa: E741
    merged = [l, l + 1023, s, s + 4095, s + 7, l + 5, l + 6, s + 1, s + 2, s + 3]
    assert flow_tokens(merged, V).tolist() == [0, 1023, 1024, 5119, 1031, 5, 6, 1025, 1026, 1027]
    assert flow_tokens([], V).tolist() == []


def test_columns_by_hand() -> None:
    l, s = V.linguistic_start, V.semantic_start  # noqa: E741
    merged = [l, l + 1023, s, s + 4095, s + 7, l + 5, l + 6, s + 1, s + 2, s + 3]
    expected = [[0, 0], [1023, 4095], [-1, 7], [5, 1], [6, 2], [-1, 3]]
    assert flow_tokens(merged, V, "columns").tolist() == expected
    assert flow_tokens([], V, "columns").shape == (0, 2)
    assert token_rate_hz("columns") == 25 and token_rate_hz("flat") == pytest.approx(41.6667, abs=1e-4)


def test_what_is_out_of_order_is_named() -> None:
    l, s = V.linguistic_start, V.semantic_start  # noqa: E741
    with pytest.raises(ValueError, match="position 8 breaks the group grammar .* 66560 to 70655"):
        flow_tokens([l, l, s, s, s, l, l, s, s + 4096, s], V)
    with pytest.raises(ValueError, match="position 1"):
        flow_tokens([l, s, s, s, s], V)
