"""Checksums of a record: every byte belongs to one that has a name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.checksums import (
    RECORD,
    DigestedRegion,
    check_files,
    digest_file,
    file_record,
    read_record,
)
from megatron_aqaa.checkpoint.output_files import OutputFile, Region, written_whole

ELEMENTS = {"first": bytes(range(40)), "second": b"", "third": b"\x07" * 9}
STARTS = {"first": 4, "second": 44, "third": 47}
LITERALS = ((56, b"end"), (0, b"head"), (44, b"gap"))  # in no order
FILE = OutputFile(
    "data/weights",
    59,
    tuple(Region(name, Box((0,), (len(data),)), STARTS[name]) for name, data in ELEMENTS.items()),
    LITERALS,
)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """A directory that was written with its checksums."""
    regions = []
    with written_whole(tmp_path / FILE.name, FILE) as descriptor:
        for name, data in ELEMENTS.items():
            output = DigestedRegion(descriptor, STARTS[name])
            for start in range(0, len(data), 7):
                output.write(memoryview(data[start : start + 7]))
            regions.append((name, STARTS[name], len(data), output.hexdigest()))
    (tmp_path / "config.json").write_text("{}")
    files = {FILE.name: file_record(FILE, reversed(regions))}
    (tmp_path / RECORD).write_text(
        json.dumps({"files": files, "beside": {"config.json": digest_file(tmp_path / "config.json")}})
    )
    found = read_record(tmp_path)
    assert found is not None
    return found


def test_the_record_is_that_of_the_bytes(tmp_path, record):
    data = (tmp_path / FILE.name).read_bytes()
    assert data == b"head" + ELEMENTS["first"] + b"gap" + ELEMENTS["third"] + b"end"
    described = record["files"][FILE.name]
    assert described["size"] == len(data) and described["between"] == hashlib.sha256(b"headgapend").hexdigest()
    assert [(name, start, size) for name, start, size, _ in described["regions"]] == [
        ("first", 4, 40), ("second", 44, 0), ("third", 47, 9)
    ]  # fmt: skip
    assert described["regions"][0][3] == hashlib.sha256(ELEMENTS["first"]).hexdigest()
    seen: list[int] = []
    check_files(tmp_path, record, workers=2, on_progress=seen.append)
    assert seen[-1] == len(data)


@pytest.mark.parametrize("position", range(59))
def test_a_flipped_byte_anywhere_is_found_and_named(tmp_path, record, position):
    data = bytearray((tmp_path / FILE.name).read_bytes())
    data[position] ^= 1
    (tmp_path / FILE.name).write_bytes(data)
    part = "first" if 4 <= position < 44 else "third" if 47 <= position < 56 else "header and trailer"
    with pytest.raises(ValueError, match=f"data/weights: {part} is not what was written: its sha256 is .* recorded"):
        check_files(tmp_path, record)


@pytest.mark.parametrize(("change", "size"), [("truncated", 58), ("longer", 60), ("missing", 0)])
def test_another_length_is_told_before_anything_is_read(tmp_path, record, change, size):
    path = tmp_path / FILE.name
    data = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes((data + b"!")[:size])
    with pytest.raises(ValueError, match=f"weights: missing or truncated: {size} bytes, 59 were written; copy the"):
        check_files(tmp_path, record, on_progress=lambda done: pytest.fail("was read"))


@pytest.mark.parametrize("change", ["missing", "changed"])
def test_a_file_beside_the_weights(tmp_path, record, change):
    if change == "missing":
        (tmp_path / "config.json").unlink()
    else:
        (tmp_path / "config.json").write_text("{ }")
    with pytest.raises(ValueError, match="config.json: missing or changed since conversion_record.json was written"):
        check_files(tmp_path, record)


def test_further_files_are_nobodys_business(tmp_path, record):
    """A trained run goes on beside what was imported."""
    (tmp_path / "notes.txt").write_text("mine")
    check_files(tmp_path, record)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"files": 1'])
def test_a_record_that_cannot_be_read_is_named(tmp_path, text):
    assert read_record(tmp_path) is None
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match=f"{RECORD}: cannot be read .* or remove this file"):
        read_record(tmp_path)
