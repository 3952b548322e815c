"""Which checkpoints stay, and how the others go."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_aqaa.checkpoint.directories import complete_checkpoints, step_of
from megatron_aqaa.checkpoint.retention import Removal, outdated, withdraw


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of steps 10 … 60."""
    for step in range(10, 61, 10):
        directory = tmp_path / "checkpoints" / f"step_{step:08d}"
        directory.mkdir(parents=True)
        (directory / "metadata.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("keep", "keep_every", "gone"),
    [
        (1, None, [10, 20, 30, 40, 50]),
        (2, None, [10, 20, 30, 40]),
        (2, 20, [10, 30]),
        (1, 30, [10, 20, 40, 50]),
        (9, None, []),
        (1, 7, [10, 20, 30, 40, 50]),
    ],
)
def test_the_newest_and_every_multiple_stay(run: Path, keep: int, keep_every: int | None, gone: list[int]) -> None:
    assert [step_of(path) for path in outdated(run, keep, keep_every)] == gone


def test_damaged_ones_go_once_the_run_has_passed_them(run: Path) -> None:
    for step in (60, 70):
        (run / "checkpoints" / f"step_{step:08d}.damaged").mkdir()
    assert [path.name for path in outdated(run, 9)] == ["step_00000060.damaged"]


def test_what_is_withdrawn_counts_no_more_and_is_cleared_later(run: Path) -> None:
    withdrawn = withdraw(outdated(run, 2))
    assert [step_of(path) for path in complete_checkpoints(run)] == [50, 60]
    assert all((path / "metadata.json").exists() for path in withdrawn)  # as after a kill before the removal
    removal = Removal(run)
    removal.clear_leftovers()
    removal.wait()
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step_00000050", "step_00000060"]


def test_removal_leaves_what_stays(run: Path) -> None:
    removal = Removal(run)
    removal.remove_outdated(keep=1, keep_every=40)
    removal.wait()
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step_00000040", "step_00000060"]
