"""Batches made ahead are those that would have been made when asked for."""

from __future__ import annotations

import threading

import pytest

from megatron_aqaa.training.speech_models.ahead import Ahead


class Source:
    """Notes who asks for what."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []

    def __call__(self, number: int) -> int:
        self.asked.append((number, threading.current_thread() is threading.main_thread()))
        if number == 99:
            raise ValueError("record 99 is damaged")
        return 10 * number


def test_even_distances_are_made_ahead() -> None:
    source = Source()
    ahead = Ahead(source)
    assert [ahead(number) for number in (1, 3, 5, 7)] == [10, 30, 50, 70]
    ahead.close()
    assert source.asked[:4] == [(1, True), (3, True), (5, False), (7, False)]
    assert {number for number, _ in source.asked} <= {1, 3, 5, 7, 9}


def test_other_numbers_are_made_when_asked_for() -> None:
    source = Source()
    ahead = Ahead(source)
    assert [ahead(number) for number in (0, 1, 8, 3, 3, 0)] == [0, 10, 80, 30, 30, 0]
    ahead.close()
    assert all(number >= 0 for number, _ in source.asked)


def test_an_error_comes_with_its_batch() -> None:
    ahead = Ahead(Source())
    assert [ahead(97), ahead(98)] == [970, 980]
    with pytest.raises(ValueError, match="record 99 is damaged"):
        ahead(99)
    ahead.close()
