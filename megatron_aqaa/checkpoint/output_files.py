"""Files of weights that a merge or a conversion writes: planned to the byte, and whole once they have their names."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.elements import write_fully
from megatron_aqaa.whole_file import partial_path


@dataclass(frozen=True)
class OutputTensor:
    """A tensor that is to be written; `boxes` are the parts in which it will be stored, whose union is the whole."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Region:
    """Where a part of a tensor goes: row-major, at byte `start` of an output file."""

    tensor: str
    box: Box
    start: int


@dataclass(frozen=True)
class OutputFile:
    """A file of weights before it is written: bytes that are known, and room for the regions.

    Attributes:
        name: relative to the output.
        size: in bytes.
        regions: in the order of their bytes.
        literals: (byte offset, bytes) of headers and the like.
    """

    name: str
    size: int
    regions: tuple[Region, ...]
    literals: tuple[tuple[int, bytes], ...]


def region_name(region: Region) -> str:
    """Tensor and place in it."""
    return f"{region.tensor}{list(region.box.offsets)}"


@contextmanager
def written_whole(path: Path, file: OutputFile) -> Iterator[int]:
    """Descriptor to write the regions to, literals in place; the file gets its name when the block ends.

    Args:
        path: of the file.
        file: as it was planned.
    """
    partial = partial_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as stream:
        stream.truncate(file.size)
        for offset, data in file.literals:
            write_fully(stream.fileno(), data, offset)
        yield stream.fileno()
        os.fsync(stream.fileno())  # it counts as done from here on, also after a power cut
    partial.rename(path)


@contextmanager
def region_threads(workers: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """A pool for the regions of a file, and an event that is set when an error, or ctrl-C, leaves the block."""
    stop = threading.Event()
    before = torch.get_num_threads()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool, stop
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(before)  # that of the threads is what new threads of the process would get


def byte_counter(done: int, on_progress: Callable[[int], Any]) -> Callable[[int], None]:
    """A call for several threads that adds bytes to `done` and reports the sum, one at a time."""
    lock = threading.Lock()

    def advance(num_bytes: int) -> None:
        nonlocal done
        with lock:
            done += num_bytes
            on_progress(done)

    return advance
