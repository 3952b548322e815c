"""Work in blocks by several processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Block = TypeVar("Block")


def map_blocks(function: Callable[[Block], int], blocks: Sequence[Block], num_workers: int) -> Iterator[int]:
    """Results of `function`, in the order in which blocks are finished; 0 workers work in the calling process."""
    if num_workers == 0 or len(blocks) < 2:
        yield from map(function, blocks)
        return
    # Spawned, not forked: the caller may hold threads of PyTorch. Interrupts are for the parent, which ends the pool.
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap_unordered(function, blocks)
