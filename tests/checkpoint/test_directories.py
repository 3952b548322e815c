"""Which directories count as checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_aqaa.checkpoint import directories


def make(run: Path, name: str, *files: str) -> Path:
    directory = run / "checkpoints" / name
    directory.mkdir(parents=True)
    for file in files:
        (directory / file).write_text("{}")
    return directory


def test_only_final_names_with_a_marker_count_oldest_first(tmp_path: Path) -> None:
    ours = make(tmp_path, "step_00000020", "checksums.json", "metadata.json")
    converted = make(tmp_path, "step_00000003", "metadata.json")
    late = make(tmp_path, "step_123456789", "metadata.json")
    make(tmp_path, "step_00000030", "common.pt")
    make(tmp_path, "step_00000040.0a1b2c3d.partial", "checksums.json", "metadata.json")
    make(tmp_path, "step_00000050.damaged", "checksums.json", "metadata.json")
    assert directories.complete_checkpoints(tmp_path) == [converted, ours, late]
    assert directories.latest_checkpoint(tmp_path) == late
    assert [path.name for path in directories.partial_checkpoints(tmp_path)] == ["step_00000040.0a1b2c3d.partial"]
    assert [path.name for path in directories.damaged_checkpoints(tmp_path)] == ["step_00000050.damaged"]


def test_partial_names_differ_each_time_and_keep_the_step(tmp_path: Path) -> None:
    final = directories.step_directory(tmp_path, 12)
    names = {directories.partial_directory(final) for _ in range(9)}
    assert len(names) == 9 and {path.parent for path in names} == {final.parent}
    assert {directories.step_of(path) for path in [final, *names, directories.damaged_directory(final)]} == {12}


def test_a_run_or_a_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, "step_00000020", "metadata.json")
    assert directories.require_checkpoint(tmp_path) == directories.require_checkpoint(checkpoint) == checkpoint
    with pytest.raises(ValueError, match="nowhere: no complete checkpoint here"):
        directories.require_checkpoint(tmp_path / "nowhere")


def test_a_checkpoint_without_megatrons_file_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "step_00000020", "checksums.json")
    with pytest.raises(ValueError, match="step_00000020: metadata.json is missing"):
        directories.require_checkpoint(tmp_path)
