"""Blocks put together from pieces: ranks with and without a layer axis, zeros, made rows, sums, casts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.conversion.pieces import Piece, Pieces
from megatron_aqaa.checkpoint.safetensors_directory import scan
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles, StoredTensor


def stored(folder: Path, tensor: Tensor) -> StoredTensor:
    save_file({"x": tensor}, folder / "model.safetensors")
    return scan(folder).tensors["x"]


def test_rows_become_a_part_of_a_stacked_tensor_and_back(tmp_path):
    data = torch.arange(24.0).view(6, 4)
    source = stored(tmp_path, data)
    pieces = Pieces([
        Piece(Box((0, 2, 0), (1, 3, 4)), source, Box((3, 0), (3, 4))),
        Piece(Box((0, 0, 0), (1, 2, 4)), source, Box((0, 0), (2, 4))),
    ])  # fmt: skip
    whole = pieces.read(Box.whole((1, 5, 4)), torch.float32, MappedFiles())
    assert torch.equal(whole, torch.cat([data[:2], data[3:]])[None])
    part = pieces.read(Box((0, 1, 1), (1, 3, 2)), torch.float32, MappedFiles())
    assert torch.equal(part, whole[:, 1:4, 1:3])
    (tmp_path / "stacked").mkdir()
    stacked = stored(tmp_path / "stacked", torch.stack([data, -data]))
    back = Pieces([Piece(Box((0, 0), (2, 4)), stacked, Box((1, 4, 0), (1, 2, 4)))])
    assert torch.equal(back.read(Box((1, 1), (1, 3)), torch.float32, MappedFiles()), -data[5:, 1:])


def test_zeros_and_rows_that_are_made():
    calls = []

    def make() -> Tensor:
        calls.append(1)
        return torch.arange(6.0).view(3, 2)

    rows = Pieces([
        Piece(Box((0, 0), (3, 2)), make, Box.whole((3, 2))),
        Piece(Box((3, 0), (2, 2)), None, Box.whole((2, 2))),
    ])  # fmt: skip
    found = rows.read(Box((2, 0), (3, 2)), torch.float64, MappedFiles())
    assert torch.equal(found, torch.tensor([[4, 5], [0, 0], [0, 0]], dtype=torch.float64)) and calls


def test_a_sum_is_rounded_once(tmp_path):
    data, added = torch.randn(5, 4).bfloat16(), torch.randn(4)
    box = Box.whole((5, 4))
    found = Pieces([Piece(box, stored(tmp_path, data), box, added)]).read(box, torch.bfloat16, MappedFiles())
    assert torch.equal(found, (data.float() + added).bfloat16())


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_not_finite_stays_so_and_what_does_not_fit_is_an_error(tmp_path, value):
    box = Box.whole((2,))
    pieces = Pieces([Piece(box, stored(tmp_path, torch.tensor([value, 1.0])), box)])
    found = pieces.read(box, torch.float16, MappedFiles())
    torch.testing.assert_close(found, torch.tensor([value, 1.0]).half(), equal_nan=True)
    (tmp_path / "large").mkdir()
    large = Pieces([Piece(box, stored(tmp_path / "large", torch.tensor([70000.0, 1.0])), box)])
    with pytest.raises(ValueError, match=r"holds values up to 7e\+04, which do not fit torch.float16"):
        large.read(box, torch.float16, MappedFiles())


def test_a_scalar(tmp_path):
    pieces = Pieces([Piece(Box.whole(()), stored(tmp_path, torch.tensor(3.0)), Box.whole(()))])
    assert pieces.read(Box.whole(()), torch.float32, MappedFiles()) == 3.0
