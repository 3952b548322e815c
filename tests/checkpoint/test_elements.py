"""Elements of tensors: looked at for NaN and infinity, and written where they belong."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa.checkpoint.elements import is_finite, tensor_bytes, write_fully


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_nan_and_infinity_are_seen_at_any_place(dtype, value):
    whole = torch.randn(1000).to(dtype)
    assert is_finite(whole)
    for place in (0, 1, 7, 15, 16, 17, 500, 992, 998, 999):
        tensor = whole.clone()
        tensor[place] = value
        assert not is_finite(tensor)


def test_what_has_no_elements_or_is_no_float_is_finite():
    assert is_finite(torch.zeros(0, 3)) and is_finite(torch.tensor([1, 2])) and is_finite(torch.tensor(True))


def test_bytes_are_those_of_the_elements():
    tensor = torch.tensor([[1, 2], [3, 258]], dtype=torch.int16)
    assert bytes(tensor_bytes(tensor)) == b"\1\0\2\0\3\0\2\1"
    assert bytes(tensor_bytes(torch.tensor(1.0))) == b"\0\0\x80\x3f"
    assert not tensor_bytes(torch.zeros(0))


def test_write_fully(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        write_fully(file.fileno(), b"cd", 2)
        write_fully(file.fileno(), memoryview(b"ab"), 0)
    assert (tmp_path / "file").read_bytes() == b"abcd"
