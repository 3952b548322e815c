"""Merges one region of the output: rows of all models are read, merged, rounded once and written, block by block."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megatron_aqaa.checkpoint.elements import is_finite, tensor_bytes, write_fully
from megatron_aqaa.checkpoint.output_files import Region
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles, StoredModel

# Three 1.5B models on two cores: 8.8 s at 2^17 (two threads, one interpreter), 6.6 at 2^18, 5.9 at 2^19.
MAX_BLOCK_ELEMENTS = 1 << 19
Merge = Callable[["ModelRows"], Iterator[Tensor]]


class Stopped(Exception):
    """Another region failed, or the user stopped the merge."""


@dataclass
class ModelRows:
    """Blocks of a region of every model; may be gone through again (`methods.Rows`).

    The first pass to its end digests what it reads and looks for NaN and infinity.

    Attributes:
        files: to read from.
        models: in the order in which the method wants them.
        region: which part of which tensor.
        block_elements: most elements of a block.
        dtype: of the blocks.
        stop: set when the work is to end early.
        digests: sha256 of the elements of each model, after the first pass.
    """

    files: MappedFiles
    models: Sequence[StoredModel]
    region: Region
    block_elements: int
    dtype: torch.dtype
    stop: threading.Event
    digests: list[str] = field(default_factory=list)
    _is_digested: bool = False

    def __iter__(self) -> Iterator[list[Tensor]]:
        digests = [] if self._is_digested else [hashlib.sha256() for _ in self.models]
        self._is_digested = True
        try:
            for box in self.region.box.blocks(self.block_elements):
                if self.stop.is_set():
                    raise Stopped
                block = [self.files.read(model.tensors[self.region.tensor], box) for model in self.models]
                for model, tensor, digest in zip(self.models, block, digests, strict=False):
                    digest.update(tensor_bytes(tensor))
                    self._check_finite(tensor, model)
                yield [tensor.to(self.dtype) for tensor in block]
            if digests:
                self.digests = [digest.hexdigest() for digest in digests]
        finally:
            self._is_digested = bool(self.digests) or not digests  # not by a pass that was given up

    def _check_finite(self, tensor: Tensor, model: StoredModel) -> None:
        if not is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ValueError(f"{model.path}: {self.region.tensor} holds NaN or infinity ({bad} of {tensor.numel()} "
                             "elements looked at); a merge would spread them. Take an earlier checkpoint")  # fmt: skip


def merge_region(
    rows: ModelRows, merge: Merge, dtype: torch.dtype, descriptor: int, advance: Callable[[int], Any]
) -> list[str]:
    """Write the merged region at its place.

    Args:
        rows: of the models.
        merge: the method with its settings.
        dtype: of the result.
        descriptor: of the open output file.
        advance: called with the number of bytes after each block.

    Returns:
        sha256 of the region's elements in each model.

    Raises:
        ValueError: NaN or infinity in a model or, since `dtype` is too narrow, in the result.
    """
    position = rows.region.start
    merged_blocks = merge(rows) if rows.dtype.is_floating_point else _equal(rows)
    for merged in merged_blocks:
        rounded = merged.to(dtype)
        if not is_finite(rounded):
            raise ValueError(f"{rows.region.tensor}: merged values up to {float(merged.abs().max()):.3g} do not fit "
                             f"{dtype}; set out_dtype: bfloat16 or float32")  # fmt: skip
        data = tensor_bytes(rounded)
        write_fully(descriptor, data, position)
        position += len(data)
        advance(len(data))
    return rows.digests


def _equal(rows: ModelRows) -> Iterator[Tensor]:
    """Integers cannot be weighted: they pass if all models have the same."""
    for first, *others in rows:
        different = next((i for i, other in enumerate(others, 1) if not torch.equal(first, other)), None)
        if different is not None:
            raise ValueError(f"{rows.region.tensor} is {first.dtype} and differs between {rows.models[0].path} and "
                             f"{rows.models[different].path}; integers are not merged")  # fmt: skip
        yield first
