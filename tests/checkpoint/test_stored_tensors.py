"""Reading parts of tensors that lie in chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.elements import tensor_bytes
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles, StoredChunk, StoredTensor


def part(whole: Tensor, box: Box) -> Tensor:
    return whole[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))]


def stored(path: Path, whole: Tensor, boxes: list[Box], start: int) -> StoredTensor:
    """`whole` in chunks, from byte `start` of a file on."""
    chunks, data = [], b"." * start
    for box in boxes:
        chunks.append(StoredChunk(path, len(data), box))
        data += bytes(tensor_bytes(part(whole, box).contiguous()))
    path.write_bytes(data)
    return StoredTensor(whole.dtype, tuple(whole.shape), tuple(chunks))


LAYOUTS = {
    "whole": [Box((0, 0), (6, 8))],
    "rows": [Box((0, 0), (2, 8)), Box((2, 0), (4, 8))],
    "columns": [Box((0, 0), (6, 4)), Box((0, 4), (6, 4))],
    "both": [Box((r, c), (3, 4)) for r in (0, 3) for c in (0, 4)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("start", [0, 3], ids=["aligned", "odd"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_any_part_of_any_layout(tmp_path, layout, start, dtype):
    whole = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).mul(9).to(dtype)
    tensor = stored(tmp_path / "file", whole, LAYOUTS[layout], start)
    files = MappedFiles()
    for box in (
        Box((0, 0), (6, 8)),
        Box((1, 2), (4, 5)),
        Box((0, 4), (6, 4)),
        Box((2, 0), (3, 8)),
        Box((5, 7), (1, 1)),
    ):
        found = files.read(tensor, box)
        assert found.is_contiguous()
        assert torch.equal(found, part(whole, box))
    files.release()
    assert torch.equal(files.read(tensor, Box.whole((6, 8))), whole)


def test_scalars_and_empty_tensors(tmp_path):
    scalar = stored(tmp_path / "scalar", torch.tensor(2.5), [Box((), ())], 4)
    assert MappedFiles().read(scalar, Box((), ())).item() == 2.5
    empty = StoredTensor(torch.float32, (0, 3), ())
    assert MappedFiles().read(empty, Box((0, 0), (0, 3))).shape == (0, 3)


def test_a_gap_between_chunks_is_an_error(tmp_path):
    whole = torch.zeros(6, 8)
    tensor = stored(tmp_path / "file", whole, [Box((0, 0), (2, 8)), Box((3, 0), (3, 8))], 0)
    with pytest.raises(ValueError, match="shards are missing"):
        MappedFiles().read(tensor, Box((1, 0), (3, 8)))
