"""Time adds up, and only that of getting items."""

from __future__ import annotations

import time
from collections.abc import Iterator

from megatron_aqaa.training.monitoring.stopwatch import Stopwatch


def slow() -> Iterator[int]:
    for number in range(3):
        time.sleep(0.02)
        yield number


def test_only_the_wait_for_items_counts() -> None:
    watch = Stopwatch()
    seen = []
    for number in watch.timed(slow()):
        seen.append(number)
        time.sleep(0.2)
    assert seen == [0, 1, 2]
    assert 0.06 <= watch.seconds < 0.6


def test_blocks_add_up() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch:
            time.sleep(0.02)
    assert watch.seconds >= 0.04
