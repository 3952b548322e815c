"""Reads the next batch while this one is computed with."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


class Ahead(Generic[Batch]):
    """`batch_at`, with the batch that is likely to be asked for next made in a thread of its own.

    A process asks for numbers at even distances (its shares of each step), so the next number is told by the last two.
    Another number than that is made when it is asked for: what is given never depends on what was made ahead.

    Args:
        batch_at: number → batch; a pure function that draws from no global generator.
    """

    def __init__(self, batch_at: Callable[[int], Batch]) -> None:
        self.batch_at = batch_at
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.last: int | None = None
        self.coming: tuple[int, Future[Batch]] | None = None

    def __call__(self, number: int) -> Batch:
        """The batch of a number."""
        batch = self._taken(number) if self.coming and self.coming[0] == number else self.batch_at(number)
        if self.last is not None and number != self.last:
            following = 2 * number - self.last
            self.coming = (following, self.thread.submit(self.batch_at, following)) if following >= 0 else None
        self.last = number
        return batch

    def _taken(self, number: int) -> Batch:
        assert self.coming is not None
        return self.coming[1].result()

    def close(self) -> None:
        """Let go of the thread; what it is at work on is waited for."""
        self.thread.shutdown(cancel_futures=True)
