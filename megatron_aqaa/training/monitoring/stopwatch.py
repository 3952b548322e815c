"""Time that adds up over many short stretches of work."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Runs inside `with` blocks.

    Attributes:
        seconds: since it was made; whoever wants a stretch takes a difference.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self.started_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self.started_s

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """`items`; the time that it takes to get each one counts."""
        iterator = iter(items)
        while True:
            with self:
                item = next(iterator, self)
            if item is self:
                return
            yield item  # type: ignore[misc]
