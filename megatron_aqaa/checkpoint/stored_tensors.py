"""Tensors as they lie in files: rectangular chunks, each row-major at a byte offset, read without loading the rest.

Safetensors files and `torch_dist` checkpoints both come down to this: a safetensors tensor is one chunk, a sharded
tensor has one chunk for each rank that saved a part of it.
"""

from __future__ import annotations

import math
import mmap
import threading
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_aqaa.checkpoint.box import Box, ByBox


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
