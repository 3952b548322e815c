"""Headers of safetensors files, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_aqaa.checkpoint.safetensors_file import file_with_header, header_text, read_header, read_tensors

TENSORS = {
    "bytes": torch.arange(7, dtype=torch.uint8),
    "half": torch.randn(3, 5).half(),
    "single": torch.randn(2, 3, 4),
    "flag": torch.tensor([True, False, True]),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def test_header(path):
    header, start = read_header(path)
    assert header["single"]["shape"] == [2, 3, 4]
    assert path.stat().st_size == start + max(
        entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
    )


def test_a_file_with_the_same_header_is_laid_out_the_same(path):
    header, start = read_header(path)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    file = file_with_header("copy", header_text(path).encode(), entries)
    assert (file.size, file.literals[0]) == (path.stat().st_size, (0, path.read_bytes()[:start]))
    places = {name: tensor.chunks[0].start for name, tensor in read_tensors(path)}
    assert {region.tensor: region.start for region in file.regions} == places


def damage(path: Path, change: str) -> None:
    data = path.read_bytes()
    _, start = read_header(path)
    path.write_bytes(
        {
            "elements": data[:-1],
            "header": data[: start - 9],
            "json": data[:8] + b"?" + data[9:],
            "tiny": data[:3],
            "fp8": data.replace(b'"dtype":"U8"', b'"dtype":"F8"'),
            "shape": data.replace(b'"shape":[2,3,4]', b'"shape":[2,3,5]'),
            "twice": data.replace(b'"flag":', b'"half":'),
            "entry": data.replace(b'"shape":[2,3,4]', b'"shope":[2,3,4]'),
        }[change]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("elements", "truncated: .* ends at byte"),
        ("header", "not a safetensors file, or truncated"),
        ("json", "the safetensors header is not JSON"),
        ("tiny", "not a safetensors file, or truncated"),
        ("fp8", "bytes has dtype F8; known: F64"),
        ("shape", r"single of shape \[2, 3, 5\] has 96 bytes"),
        ("twice", r"the safetensors header is not JSON \(half is in it twice\)"),
        ("entry", "the header's entry of single is"),
    ],
)
def test_a_damaged_file_is_named(path, change, message):
    damage(path, change)
    with pytest.raises(ValueError, match=f"{path.name}: {message}"):
        list(read_tensors(path))
