from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_aqaa.training.tokenizer_scores import CodePhones, PhoneErrors, edit_distance
from megatron_aqaa.training.tokenizer_steps import IGNORED, SpeechBatch


def batch(phones: list[list[int]]) -> SpeechBatch:
    lengths = torch.tensor([len(row) for row in phones])
    rows = torch.full((len(phones), int(lengths.max())), IGNORED)
    for row, content in zip(rows, phones, strict=True):
        row[: len(content)] = torch.tensor(content)
    return SpeechBatch(torch.zeros(*rows.shape, 80), lengths, rows, torch.zeros(len(phones), rows.shape[1] // 2))


def test_phone_error_worked_out_by_hand() -> None:
    errors = PhoneErrors(["_", "a", "b", "_:", ";"])
    spoken = batch([[0, 0, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1]])
    heard = torch.tensor([[0, 0, 1, 1, 1, 1, 3, 3], [1, 1, 2, 1, 2, 2, 2, 2]])  # beyond the length nothing counts
    errors.add(heard, spoken)
    assert (errors.errors, errors.total) == (1, 3)  # "ab a" against "a a": a single frame of b is no phone
    assert errors.rate == pytest.approx(1 / 3)


def test_runs_are_merged_and_silence_left_out() -> None:
    errors = PhoneErrors(["_", "a", "b", ";"])
    assert errors.sequence([1, 1, 0, 0, 1, 1, 3, 3, 2, 2, 1, 2, 2]) == [1, 2]


@settings(max_examples=80, deadline=None)
@given(a=st.lists(st.integers(0, 2), max_size=6), b=st.lists(st.integers(0, 2), max_size=6))
def test_edit_distance_against_the_recursion(a: list[int], b: list[int]) -> None:
    def distance(a: list[int], b: list[int]) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return distance(a[1:], b[1:])
        return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))

    assert edit_distance(a, b) == distance(a, b)


def test_code_phones_take_the_middle_of_a_code() -> None:
    codes = CodePhones(size=4, frames_per_code=2)
    spoken = batch([[0, 1, 0, 2, 0, 1], [0, 2]])
    codes.add(torch.tensor([[3, 0, 3], [0, 0, 0]]), spoken, judged=False)
    codes.add(torch.tensor([[3, 3, 0], [1, 0, 0]]), spoken, judged=True)
    scores = codes.scores()
    assert scores["codes_used"] == 2
    assert scores["perplexity"] == pytest.approx(2.0)
    assert scores["code_phone_accuracy"] == pytest.approx(1 / 4)  # 3→1 right; 3→2, 0→1 and the unseen 1 wrong
