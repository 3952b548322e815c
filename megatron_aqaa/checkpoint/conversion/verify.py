"""Compares two checkpoints tensor by tensor, of whatever kind and layout; or one with its recorded checksums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa.checkpoint import safetensors_directory, torch_dist_directory
from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.checksums import RECORD, check_files, read_record
from megatron_aqaa.checkpoint.conversion.export_pieces import exported_pieces
from megatron_aqaa.checkpoint.conversion.huggingface_source import extra_tensors
from megatron_aqaa.checkpoint.conversion.model_directory import read_model
from megatron_aqaa.checkpoint.conversion.pieces import Pieces, whole_tensors
from megatron_aqaa.checkpoint.mapping import HF_HEAD, Shape, listed
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles, StoredTensor

_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Readable:
    """A tensor that can be read by parts, however it is stored."""

    dtype: torch.dtype
    shape: Shape
    pieces: Pieces


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        num_tensors: that were compared.
        num_different: of them, those with any bit that differs.
        worst: tensor with the largest difference, None where all bits are equal.
        largest: that difference (infinity where only one side is finite, or NaN).
        worst_index: where in the tensor it is.
    """

    num_tensors: int
    num_different: int
    worst: str | None
    largest: float
    worst_index: tuple[int, ...]

    def __str__(self) -> str:
        if self.worst is None:
            return f"{self.num_tensors} tensors, equal bit by bit"
        place = f"{self.worst}{list(self.worst_index)}"
        return f"{self.num_different} of {self.num_tensors} tensors differ, most {place}: by {self.largest:.6g}"


def check_recorded(path: Path, workers: int = 1, on_progress: Callable[[int], Any] = lambda done: None) -> int:
    """Compare a converted directory with its record.

    Returns:
        Number of bytes that were read.

    Raises:
        ValueError: there is no record, or something is missing or changed; names file and tensor.
    """
    record = read_record(path)
    if record is None:
        raise ValueError(f"{path}: has no {RECORD}; only what tools/convert_checkpoint.py wrote has checksums. Give a "
                         "second checkpoint to compare with")  # fmt: skip
    check_files(path, record, workers, on_progress)
    return sum(file["size"] for file in record["files"].values())


def compare(first: Path, second: Path, on_progress: Callable[[int], Any] = lambda done: None) -> Comparison:
    """Compare all tensors. Checkpoints of one kind are compared as they are, others by Hugging Face names.

    Raises:
        ValueError: they do not hold the same tensors in the same shapes; lists some.
    """
    both_megatron = all(map(torch_dist_directory.is_torch_dist_directory, (first, second)))
    a, b = (_readable(path, as_it_is=both_megatron) for path in (first, second))
    _check_same_tensors(first, a, second, b)
    files, done = MappedFiles(), 0
    different, worst, largest = 0, None, 0.0
    place: tuple[int, ...] = ()
    for name, tensor in a.items():
        equal, difference, index = _difference(tensor, b[name], files)
        different += not equal
        if not equal and (worst is None or difference > largest):
            worst, largest, place = name, difference, index
        done += torch.Size(tensor.shape).numel() * tensor.dtype.itemsize
        on_progress(done)
        files.release()
    return Comparison(len(a), different, worst, largest, place)


def _readable(path: Path, as_it_is: bool) -> dict[str, Readable]:
    if safetensors_directory.is_safetensors_directory(path):
        return _described(safetensors_directory.scan(path).tensors)
    if as_it_is:
        return _described(torch_dist_directory.scan(path).tensors)
    found = read_model(path)
    exported = {
        name: Readable(pieces.items[0].source.dtype, shape, pieces)  # type: ignore[union-attr]
        for name, (shape, pieces) in exported_pieces(found).items()
    }
    return exported | _described(extra_tensors(found.run))


def _described(tensors: Mapping[str, StoredTensor]) -> dict[str, Readable]:
    pieces = whole_tensors(tensors)
    return {name: Readable(it.dtype, it.shape, pieces[name]) for name, it in tensors.items()}


def _check_same_tensors(first: Path, a: dict[str, Readable], second: Path, b: dict[str, Readable]) -> None:
    if a.keys() ^ b.keys() == {HF_HEAD}:  # a tied head that one of them stores a second time
        for side in (a, b):
            side.pop(HF_HEAD, None)
    for path, extra in ((first, a.keys() - b.keys()), (second, b.keys() - a.keys())):
        if extra:
            raise ValueError(f"{first} and {second}: {len(extra)} tensor(s) only in {path}: {listed(sorted(extra))}")
    wrong = [f"{name} is {list(a[name].shape)}, {list(b[name].shape)}" for name in a if a[name].shape != b[name].shape]
    if wrong:
        raise ValueError(f"{first} and {second}: {len(wrong)} tensor(s) of unlike shape: {listed(wrong, '; ')}")


def _difference(a: Readable, b: Readable, files: MappedFiles) -> tuple[bool, float, tuple[int, ...]]:
    """Whether all bits are equal, the largest difference, and where it is."""
    equal, largest = True, -1.0
    place: tuple[int, ...] = ()
    for box in Box.whole(a.shape).blocks(_BLOCK_BYTES // a.dtype.itemsize):
        x, y = (it.pieces.read(box, it.dtype, files) for it in (a, b))
        if x.dtype == y.dtype and torch.equal(_bits(x), _bits(y)):
            continue
        equal = False
        wide = (x.double() - y.double()).abs()
        wide = torch.where(x.double() == y.double(), 0.0, wide).nan_to_num(torch.inf, torch.inf)
        value, index = wide.flatten().max(0)
        if float(value) > largest:
            inner = torch.unravel_index(index, box.sizes) if box.sizes else ()
            largest = float(value)
            place = tuple(int(i) + offset for i, offset in zip(inner, box.offsets, strict=True))
    return equal, max(largest, 0.0), place


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
