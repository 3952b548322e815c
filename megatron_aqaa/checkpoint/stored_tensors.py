"""Tensors as they lie in files: rectangular chunks, each row-major at a byte offset, read without loading the rest.

Safetensors files and `torch_dist` checkpoints both come down to this: a safetensors tensor is one chunk, a sharded
tensor has one chunk for each rank that saved a part of it.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A rectangular part of a tensor.

    Attributes:
        offsets: first index on every axis.
        sizes: extent on every axis; both are empty for a scalar.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """All of a tensor of this shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def num_elements(self) -> int:
        """Elements inside."""
        return math.prod(self.sizes)

    def overlap(self, other: Box) -> Box | None:
        """The part that lies in both, None where there is none."""
        starts = tuple(map(max, self.offsets, other.offsets))
        stops = map(min, self._stops(), other._stops())
        sizes = tuple(stop - start for start, stop in zip(starts, stops, strict=True))
        return Box(starts, sizes) if all(size > 0 for size in sizes) else None

    def _stops(self) -> Iterator[int]:
        return (offset + size for offset, size in zip(self.offsets, self.sizes, strict=True))

    def blocks(self, max_elements: int) -> Iterator[Box]:
        """Parts of at most `max_elements` elements (at least 1), in row-major order, which are the whole together."""
        if self.num_elements <= max_elements:
            yield self
            return
        axis = next(axis for axis, size in enumerate(self.sizes) if size > 1)
        step = max(1, max_elements * self.sizes[axis] // self.num_elements)
        for start in range(0, self.sizes[axis], step):
            yield from self.narrowed(axis, start, min(step, self.sizes[axis] - start)).blocks(max_elements)

    def narrowed(self, axis: int, start: int, size: int) -> Box:
        """`size` indices of one axis, from the `start`-th of this box on."""
        offsets, sizes = list(self.offsets), list(self.sizes)
        offsets[axis] += start
        sizes[axis] = size
        return Box(tuple(offsets), tuple(sizes))


class HasBox(Protocol):
    """Something that lies in a box of a tensor."""

    @property
    def box(self) -> Box:
        """Where."""


T = TypeVar("T", bound=HasBox)


class ByBox(Generic[T]):
    """Things that lie beside each other in a tensor, found by the first axis: stacked tensors have hundreds.

    Args:
        items: in any order.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self.items = sorted(items, key=lambda item: item.box.offsets)
        self._starts = [item.box.offsets[:1] for item in self.items]
        self._longest = max((item.box.sizes[0] for item in self.items if item.box.sizes), default=0)

    def overlapping(self, box: Box) -> list[tuple[T, Box]]:
        """What shares elements with `box`, and the part that it shares."""
        if not box.offsets:
            return [(self.items[0], box)]
        first = bisect_left(self._starts, (box.offsets[0] - self._longest + 1,))
        stop = bisect_left(self._starts, (box.offsets[0] + box.sizes[0],))
        return [(item, part) for item in self.items[first:stop] if (part := item.box.overlap(box)) is not None]


@dataclass(frozen=True)
class StoredChunk:
    """Elements of `box`, row-major, at byte `start` of the file `path`."""

    path: Path
    start: int
    box: Box


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk; its chunks do not overlap and cover it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[StoredChunk, ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        """How it is split, in row-major order."""
        return tuple(sorted((chunk.box for chunk in self.chunks), key=lambda box: box.offsets))

    @cached_property
    def by_box(self) -> ByBox[StoredChunk]:
        """The chunks, to be looked up."""
        return ByBox(self.chunks)


@dataclass(frozen=True)
class StoredModel:
    """The weights of a model on disk.

    Attributes:
        path: as the user named it.
        directory: where the files are.
        tensors: by name, in the order in which they are stored.
        settings: what must be equal in models that are merged, where both say it.
        tokenizer: digest of each file of the tokenizer that is there.
        files: everything that holds weights or says where they are.
        beside: what stands beside the weights and goes with them, as `plan` and `finish` of its kind of directory
            take it.
        left_out: what else is stored there and stays behind.
    """

    path: str
    directory: Path
    tensors: dict[str, StoredTensor]
    settings: dict[str, Any]
    tokenizer: dict[str, str]
    files: tuple[Path, ...]
    beside: Any
    left_out: tuple[str, ...] = ()


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


class MappedFiles:
    """Files mapped into memory for reading. Only pages that are read become resident, and none is anonymous memory."""

    def __init__(self) -> None:
        self._files: dict[Path, Tensor] = {}
        self._lock = threading.Lock()

    def read(self, tensor: StoredTensor, box: Box) -> Tensor:
        """Elements of `box`: contiguous, to be left unchanged; no copy where they lie together in one chunk.

        Raises:
            ValueError: no chunk holds some of them.
        """
        parts = tensor.by_box.overlapping(box)
        if len(parts) == 1 and parts[0][1] == box:
            return self._elements(*parts[0], tensor.dtype)
        if sum(part.num_elements for _, part in parts) != box.num_elements:
            raise ValueError(f"{tensor.chunks[0].path.parent}: shards are missing: elements {box} of a tensor of shape "
                             f"{list(tensor.shape)} are in none; save or copy the checkpoint again")  # fmt: skip
        gathered = torch.empty(box.sizes, dtype=tensor.dtype)
        for chunk, part in parts:
            target = gathered
            for axis, (offset, size) in enumerate(zip(part.offsets, part.sizes, strict=True)):
                target = target.narrow(axis, offset - box.offsets[axis], size)
            target.copy_(self._elements(chunk, part, tensor.dtype))
        return gathered

    def _elements(self, chunk: StoredChunk, part: Box, dtype: torch.dtype) -> Tensor:
        """By bytes, since shards of a `torch_dist` file may lie at odd addresses."""
        shape = chunk.box.sizes or (1,)
        *rows, columns = shape
        data = self._bytes(chunk.path)[chunk.start : chunk.start + math.prod(shape) * dtype.itemsize]
        data = data.view(*rows, columns * dtype.itemsize)
        for axis, (offset, size) in enumerate(zip(part.offsets, part.sizes, strict=True)):
            unit = dtype.itemsize if axis == len(shape) - 1 else 1
            data = data.narrow(axis, (offset - chunk.box.offsets[axis]) * unit, size * unit)
        data = data.contiguous()
        if data.storage_offset() % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).view(part.sizes)

    def _bytes(self, path: Path) -> Tensor:
        with self._lock:
            if path not in self._files:
                with path.open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the tensor being read-only: nobody writes to it
                    self._files[path] = torch.frombuffer(mapped, dtype=torch.uint8)
            return self._files[path]

    def release(self) -> None:
        """Give back pages and descriptors; a file is mapped again when it is read again."""
        with self._lock:
            self._files.clear()


def region_name(region: Region) -> str:
    """Tensor and place in it."""
    return f"{region.tensor}{list(region.box.offsets)}"


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def write_fully(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`; one system call writes at most 2 GiB."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
