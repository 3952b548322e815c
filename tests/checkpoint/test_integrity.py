"""Damage is found by name, and the checkpoint before is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_aqaa import platform
from megatron_aqaa.checkpoint import integrity
from megatron_aqaa.checkpoint.checksums import digest_file
from megatron_aqaa.checkpoint.directories import complete_checkpoints
from megatron_aqaa.checkpoint.file_digests import FileDigest, read_record, write_record
from megatron_aqaa.platform import ParallelConfig

FILES = {"metadata.json": b"{}", ".metadata": b"index", "common.pt": b"values", "__0_0.distcp": bytes(range(256)) * 40}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    platform.initialize(ParallelConfig())
    yield
    platform.shutdown()


def make(run: Path, step: int) -> Path:
    directory = run / "checkpoints" / f"step_{step:08d}"
    directory.mkdir(parents=True)
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    write_record(directory, {})
    return directory


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_every_file_is_recorded_and_an_intact_one_has_no_faults(tmp_path: Path) -> None:
    directory = make(tmp_path, 1)
    record = read_record(directory)
    assert record is not None and record.keys() == FILES.keys()
    assert record["__0_0.distcp"] == FileDigest(256 * 40, digest_file(directory / "__0_0.distcp"))
    assert integrity.faults(directory) == []
    integrity.require_whole(directory)
    integrity.require_intact(directory)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("at", [0, -1])
def test_one_flipped_bit_is_found(tmp_path: Path, name: str, at: int) -> None:
    directory = make(tmp_path, 1)
    flip(directory / name, at)
    assert integrity.faults(directory) == [f"{name} is not what was written: its sha256 has changed"]
    with pytest.raises(ValueError, match=f"step_00000001: damaged: {name} is not what was written"):
        integrity.require_intact(directory)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_truncated_file_is_found_without_reading(tmp_path: Path, name: str) -> None:
    directory = make(tmp_path, 1)
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{name} has {len(content) - 1} bytes, {len(content)} were written"):
        integrity.require_whole(directory)
    (directory / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        integrity.require_whole(directory)
    assert integrity.faults(directory) == [f"{name} is missing"]


def test_a_damaged_record_is_a_fault(tmp_path: Path) -> None:
    directory = make(tmp_path, 1)
    whole = (directory / "checksums.json").read_text()
    for broken in ("", whole[: len(whole) // 2], "[]", '{"files": {"a": 1}}'):
        (directory / "checksums.json").write_text(broken)
        assert integrity.faults(directory)[0].startswith("checksums.json: cannot be read")
        with pytest.raises(ValueError, match="step_00000001: damaged: checksums.json: cannot be read"):
            integrity.require_whole(directory)


def test_a_checkpoint_without_checksums_is_taken_and_that_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make(tmp_path, 1)
    (directory / "checksums.json").unlink()
    flip(directory / "common.pt", 0)
    assert integrity.faults(directory) == integrity.faults(directory) == []
    integrity.require_whole(directory)
    assert capsys.readouterr().err.count("has no checksums.json") == 1


@pytest.mark.parametrize("name", FILES)
def test_a_converted_checkpoint_is_held_to_the_record_of_its_conversion(tmp_path: Path, name: str) -> None:
    directory = make(tmp_path, 0)
    (directory / "checksums.json").unlink()
    (tmp_path / "config.yaml").write_text("as converted")
    digests = {file: digest_file(directory / file) for file in FILES}
    shards = {f"checkpoints/{directory.name}/__0_0.distcp": digests.pop("__0_0.distcp")}
    files = {
        file: {"size": 10240, "between": hashlib.sha256().hexdigest(), "regions": [["weight", 0, 10240, digest]]}
        for file, digest in shards.items()
    }
    beside = {f"checkpoints/{directory.name}/{file}": digest for file, digest in digests.items()}
    record = {"files": files, "beside": {**beside, "config.yaml": "0" * 64}}
    (tmp_path / "conversion_record.json").write_text(json.dumps(record))
    assert integrity.faults(directory) == []  # though config.yaml has been edited
    flip(directory / name, 1)
    with pytest.raises(ValueError, match=f"step_00000000: damaged: .*{name}: "):
        integrity.require_intact(directory)
    (directory / name).unlink()
    with pytest.raises(ValueError, match=f"step_00000000: damaged: .*{name}: missing"):
        integrity.require_intact(directory)


def test_the_newest_intact_one_is_used_and_damaged_ones_are_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (make(tmp_path, step) for step in (1, 2, 3))
    assert integrity.newest_intact(tmp_path) == third
    flip(third / "__0_0.distcp", 777)
    (second / "metadata.json").unlink()
    assert integrity.newest_intact(tmp_path) == first
    said = capsys.readouterr().err
    assert f"{third}: damaged: __0_0.distcp is not what was written" in said
    assert f"{second}: damaged: metadata.json is missing" in said
    assert said.count("continuing from step_00000001") == 2
    assert complete_checkpoints(tmp_path) == [first]
    assert third.with_name("step_00000003.damaged").exists()


def test_a_step_may_be_damaged_twice(tmp_path: Path) -> None:
    first = make(tmp_path, 1)
    for _ in range(2):
        flip(make(tmp_path, 2) / "common.pt", 0)
        assert integrity.newest_intact(tmp_path) == first


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(make(tmp_path, step) / "common.pt", 0)
    for _ in range(2):  # the same the next time
        with pytest.raises(
            ValueError, match="no checkpoint is intact.*step_00000002: common.pt.*step_00000001: common"
        ):
            integrity.newest_intact(tmp_path)


def test_a_new_run_has_none(tmp_path: Path) -> None:
    assert integrity.newest_intact(tmp_path) is None
