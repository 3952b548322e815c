"""Archives of `torch.save`, read and written around their elements."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from megatron_aqaa.checkpoint.elements import tensor_bytes
from megatron_aqaa.checkpoint.saved_tensor import archive_ends, read_without_elements

TENSORS = [torch.randn(3, 5), torch.randn(2, 1, 7).bfloat16(), torch.tensor(4.0), torch.arange(9), torch.zeros(0, 3)]


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}")
def test_elements_between_the_ends_are_an_archive(tensor):
    head, tail = archive_ends(tuple(tensor.shape), tensor.dtype)
    loaded = torch.load(io.BytesIO(head + bytes(tensor_bytes(tensor)) + tail))
    assert loaded.dtype == tensor.dtype and torch.equal(loaded, tensor)


def test_other_bytes_are_refused(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="file: bytes 3 … 12 hold no tensor"):
        read_without_elements(tmp_path / "file", 3, 9)


@pytest.mark.parametrize("start", [0, 13])
@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}")
def test_where_the_elements_lie(tmp_path: Path, tensor, start):
    archive = io.BytesIO()
    torch.save(tensor, archive)
    data = b"." * start + archive.getvalue() + b"more"
    (tmp_path / "file").write_bytes(data)
    found = read_without_elements(tmp_path / "file", start, len(archive.getvalue()))
    assert found.is_meta and found.dtype == tensor.dtype and found.shape == tensor.shape
    offset = start + found.untyped_storage()._checkpoint_offset
    assert data[offset : offset + tensor.nbytes] == bytes(tensor_bytes(tensor))
