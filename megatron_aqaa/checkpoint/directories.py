"""Where a run keeps its checkpoints, and which directories count as one.

A run keeps `checkpoints/step_00001200/`. A checkpoint is written as `step_00001200.<random>.partial` and gets its name
by a rename once all of it is on the disk, so what a killed save leaves never counts, whatever is in it. The random part
keeps a writer that outlives its run from touching what the next run writes.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path

METADATA = "metadata.json"
RECORD = "checksums.json"
COMPLETE_MARKERS = (RECORD, METADATA)
"""A directory is a checkpoint if it has its final name and one of these: the checksums, which a training run writes
last, or Megatron's file, which conversion, merging and older versions write last."""
_NAME = re.compile(r"step_(\d{8,})")
_PARTIAL, _DAMAGED = ".partial", ".damaged"


def step_directory(run: Path, step: int) -> Path:
    """Directory of the checkpoint after `step` steps."""
    return run / "checkpoints" / f"step_{step:08d}"


def partial_directory(directory: Path) -> Path:
    """A new name for `directory` while it is incomplete, on its way in or out."""
    return directory.with_name(f"{directory.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")


def damaged_directory(directory: Path) -> Path:
    """Where a damaged checkpoint is set aside."""
    return directory.with_name(directory.name + _DAMAGED)


def step_of(directory: Path) -> int:
    """Steps done at the checkpoint `directory`, complete or not."""
    return int(directory.name.split(".")[0].removeprefix("step_"))


def is_complete(directory: Path) -> bool:
    """Whether all of it was written; not whether it is still intact."""
    return any((directory / marker).exists() for marker in COMPLETE_MARKERS)


def complete_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = (path for path in (run / "checkpoints").glob("step_*") if _NAME.fullmatch(path.name))
    return sorted(filter(is_complete, found), key=step_of)


def latest_checkpoint(run: Path) -> Path | None:
    """Newest complete checkpoint of a run, or None."""
    found = complete_checkpoints(run)
    return found[-1] if found else None


def partial_checkpoints(run: Path) -> list[Path]:
    """What killed saves and removals left."""
    return sorted((run / "checkpoints").glob(f"step_*{_PARTIAL}"))


def damaged_checkpoints(run: Path) -> list[Path]:
    """What was set aside as damaged."""
    return sorted((run / "checkpoints").glob(f"step_*{_DAMAGED}"))


def require_checkpoint(path: Path) -> Path:
    """`path` itself if it is a checkpoint, else the newest one of the run `path`.

    Raises:
        ValueError: neither, the message says what was looked for; or it is not whole any more.
    """
    found = path if is_complete(path) else latest_checkpoint(path)
    if found is None:
        raise ValueError(f"{path}: no complete checkpoint here (looked for checkpoints/step_*/{METADATA})")
    if not (found / METADATA).exists():
        raise ValueError(f"{found}: {METADATA} is missing; copy the checkpoint again")
    return found
