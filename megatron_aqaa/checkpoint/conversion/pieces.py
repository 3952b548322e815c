"""Where the elements of a written tensor come from: pieces of stored tensors, read and put together block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_aqaa.checkpoint.box import Box, ByBox
from megatron_aqaa.checkpoint.elements import is_finite
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles, StoredTensor

MadeRows = Callable[[], Tensor]


@dataclass(frozen=True)
class Piece:
    """Elements of one box, row-major, of a tensor that is written.

    Attributes:
        box: in the written tensor.
        source: tensor that they come from, a call that makes them, or None for zeros.
        source_box: in `source`; the same sizes, but for axes of 1 in front.
        added: [columns] in fp32 or wider, added to every row before the one rounding.
    """

    box: Box
    source: StoredTensor | MadeRows | None
    source_box: Box
    added: Tensor | None = None


class Pieces(ByBox[Piece]):
    """All pieces of one written tensor, which cover it without overlap."""

    def read(self, box: Box, dtype: torch.dtype, files: MappedFiles) -> Tensor:
        """Elements of `box`: contiguous, to be left unchanged; no copy where they lie together and keep their dtype.

        Raises:
            ValueError: a finite value does not fit `dtype`.
        """
        parts = self.overlapping(box)
        if len(parts) == 1 and parts[0][1] == box:
            return _cast(*parts[0], dtype, files)
        gathered = torch.empty(box.sizes, dtype=dtype)
        covered = 0
        for piece, part in parts:
            target = gathered
            for axis, (offset, size) in enumerate(zip(part.offsets, part.sizes, strict=True)):
                target = target.narrow(axis, offset - box.offsets[axis], size)
            target.copy_(_cast(piece, part, dtype, files))
            covered += part.num_elements
        assert covered == box.num_elements, f"pieces cover {covered} of {box}"
        return gathered


def whole_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, Pieces]:
    """Pieces of tensors that stay as they are."""
    return {name: Pieces([Piece(Box.whole(it.shape), it, Box.whole(it.shape))]) for name, it in tensors.items()}


def _cast(piece: Piece, part: Box, dtype: torch.dtype, files: MappedFiles) -> Tensor:
    if piece.source is None:
        return torch.zeros(part.sizes, dtype=dtype)
    wanted = _in_source(piece, part)
    if isinstance(piece.source, StoredTensor):
        data = files.read(piece.source, wanted)
    else:
        data = piece.source()[tuple(slice(a, a + b) for a, b in zip(wanted.offsets, wanted.sizes, strict=True))]
    if piece.added is not None:
        wide = torch.promote_types(data.dtype, torch.float32)
        data = (data.to(wide) + piece.added.to(wide)).to(data.dtype)
    narrow = data.to(dtype)
    if narrow.dtype != data.dtype and not is_finite(narrow) and is_finite(data):
        raise ValueError(f"holds values up to {float(data.abs().max()):.3g}, which do not fit {dtype}"
                         f"{_place(piece, wanted)}; take bfloat16 or float32")  # fmt: skip
    return narrow.reshape(part.sizes)


def _place(piece: Piece, wanted: Box) -> str:
    if not isinstance(piece.source, StoredTensor):
        return ""
    files = sorted({chunk.path.name for chunk, _ in piece.source.by_box.overlapping(wanted)})
    return f" (read from {', '.join(files)})"


def _in_source(piece: Piece, part: Box) -> Box:
    """`part` of the written tensor as a box of the source; the last axes correspond."""
    shift = len(piece.source_box.offsets) - len(part.offsets)
    inner = [offset - start for offset, start in zip(part.offsets, piece.box.offsets, strict=True)]
    inner, sizes = [0] * shift + inner[max(0, -shift) :], [1] * shift + list(part.sizes[max(0, -shift) :])
    return Box(tuple(a + b for a, b in zip(piece.source_box.offsets, inner, strict=True)), tuple(sizes))
