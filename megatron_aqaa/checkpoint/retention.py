"""Which checkpoints of a run stay, and removing the others so that no half of one ever counts."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from pathlib import Path

from megatron_aqaa.checkpoint.directories import (
    complete_checkpoints,
    damaged_checkpoints,
    partial_checkpoints,
    partial_directory,
    step_of,
)


def outdated(run: Path, keep: int, keep_every: int | None = None) -> list[Path]:
    """Checkpoints that are neither among the newest nor to stay for ever, and damaged ones that were passed.

    Args:
        run: directory of the run.
        keep: newest checkpoints to keep, at least 1.
        keep_every: steps; a checkpoint of a multiple stays. None for none.
    """
    complete = complete_checkpoints(run)
    newest = step_of(complete[-1]) if complete else -1
    old = [path for path in complete[:-keep] if keep_every is None or step_of(path) % keep_every]
    return [*old, *(path for path in damaged_checkpoints(run) if step_of(path) <= newest)]


def withdraw(checkpoints: Iterable[Path]) -> list[Path]:
    """Rename each so that it does not count any more, which takes no time; gives the new names."""
    return [path.rename(partial_directory(path.with_suffix(""))) for path in checkpoints]


def remove(directories: Iterable[Path]) -> None:
    """Delete what does not count; what cannot be deleted now is tried again when the run next starts."""
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


class Removal:
    """Removes directories while training goes on: unlinking 1 GB takes 50 ms or more. One rank has one."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._threads: list[threading.Thread] = []

    def clear_leftovers(self) -> None:
        """Remove what killed saves and removals left."""
        self._start(partial_checkpoints(self._run))

    def remove_outdated(self, keep: int, keep_every: int | None) -> None:
        """Remove what `outdated` finds; it stops counting at once."""
        self._start(withdraw(outdated(self._run, keep, keep_every)))

    def wait(self) -> None:
        """Until all is gone."""
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self, directories: list[Path]) -> None:
        if directories:
            self._threads.append(threading.Thread(target=remove, args=(directories,), name="checkpoint removal"))
            self._threads[-1].start()
