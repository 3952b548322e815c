"""A tensor as `torch.save` stores it: where its elements lie, and what stands before and after them."""

from __future__ import annotations

import functools
import io
import math
import tempfile
from pathlib import Path
from typing import IO, Any, cast

import torch


def read_without_elements(path: Path, start: int, length: int) -> torch.Tensor:
    """The tensor in bytes `start` … `start + length` of `path`, on the meta device.

    Its `untyped_storage()._checkpoint_offset` says where its elements are, from `start` on.

    Raises:
        ValueError: there is no such thing.
    """
    with path.open("rb") as file:
        part = cast(IO[bytes], _Slice(file, start, length))
        try:
            found = torch.load(part, map_location="meta", weights_only=True)
        except Exception:  # whatever the unpickler makes of other bytes
            found = None
    if not isinstance(found, torch.Tensor):
        raise ValueError(f"{path}: bytes {start} … {start + length} hold no tensor; copy the file again")
    return found


@functools.lru_cache(maxsize=1024)
def archive_ends(sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[bytes, bytes]:
    """What `torch.save` writes before and after the elements of a tensor of this shape.

    The archive's check sum of the elements stays zero; `torch.load` does not look at it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.pt"  # the name is part of the archive
        with torch.serialization.skip_data():  # leaves a hole for the elements: a few KB on disk at any size
            torch.save(torch.empty(sizes, dtype=dtype), path)
        start = torch.load(path, map_location="meta").untyped_storage()._checkpoint_offset
        with path.open("rb") as file:
            head = file.read(start)
            file.seek(start + math.prod(sizes) * dtype.itemsize)
            return head, file.read()


class _Slice(io.RawIOBase):
    """A part of an open file as a file of its own."""

    def __init__(self, file: io.BufferedReader, start: int, length: int) -> None:
        self._file, self._start, self._length, self._position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._position)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._length - self._position)])
        self._position += count
        return count
