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
    # Interrupts are for the parent, which ends the pool. Workers are born ignoring them: one that did so only once it
    # has started would greet an early ctrl-C with a traceback.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:  # spawned, not forked: the caller may hold threads of PyTorch
        pool = multiprocessing.get_context("spawn").Pool(num_workers)
    finally:
        signal.signal(signal.SIGINT, before)
    with pool:
        yield from pool.imap_unordered(function, blocks)
