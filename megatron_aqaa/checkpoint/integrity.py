"""Whether a checkpoint is what was written, and which one a run continues from; each rank reads its share of files."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch.distributed as dist

from megatron_aqaa.checkpoint import checksums
from megatron_aqaa.checkpoint.agreement import from_all_ranks, from_rank_zero
from megatron_aqaa.checkpoint.checksums import digest_file
from megatron_aqaa.checkpoint.directories import RECORD, complete_checkpoints, damaged_directory
from megatron_aqaa.checkpoint.file_digests import FileDigest, absent, read_record
from megatron_aqaa.checkpoint.retention import remove

_SHOWN = 3
_PARTS, _READERS = ("files", "beside"), 8
_unchecked_said: set[Path] = set()


def require_whole(directory: Path) -> None:
    """Raise ValueError, naming the file, unless every file has its size: a moment's work, done before any load."""
    try:
        found = absent(directory, read_record(directory) or {})
    except ValueError as error:
        found = [str(error)]
    if found:
        raise ValueError(f"{directory}: damaged: {_listed(found)}. Copy the checkpoint again, or take another one")


def require_intact(directory: Path) -> None:
    """Raise ValueError on every rank, naming the files, unless all checksums agree; all ranks call this."""
    found = faults(directory)
    if found:
        raise ValueError(f"{directory}: damaged: {_listed(found)}. Copy the checkpoint again, or take another one")


def faults(directory: Path) -> list[str]:
    """What is not as it was written, file by file, the same on every rank; all ranks call this.

    A conversion recorded checksums of its own, which rank 0 compares. A checkpoint without any has no faults; that is
    said once.
    """
    return sorted({fault for share in from_all_ranks(list(_share(directory))) for fault in share})


def newest_intact(run: Path) -> Path | None:
    """The checkpoint that a run continues from, None if it has none; all ranks call this.

    Damaged ones that are newer are named on standard error and set aside as `step_….damaged`.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    refused: dict[Path, list[str]] = {}
    for directory in reversed(from_rank_zero(lambda: complete_checkpoints(run))):
        found = faults(directory)
        if not found:
            from_rank_zero(lambda good=directory: _set_aside(refused, good))  # type: ignore[misc]
            return directory
        refused[directory] = found
    if refused:
        listed = "; ".join(f"{directory.name}: {_listed(found)}" for directory, found in refused.items())
        raise ValueError(
            f"{run}: no checkpoint is intact ({listed}). Copy one back, or remove {run / 'checkpoints'} to start anew"
        )
    return None


def _set_aside(refused: dict[Path, list[str]], good: Path) -> None:
    for directory, found in refused.items():
        aside = damaged_directory(directory)
        remove([aside])  # of the same step, damaged before
        directory.rename(aside)
        print(
            f"{directory}: damaged: {_listed(found)}. Set aside as {aside.name}; continuing from {good.name}",
            file=sys.stderr,
            flush=True,
        )


def _share(directory: Path) -> Iterable[str]:
    """Faults among every n-th file, large ones first so that the shares are alike."""
    try:
        record = read_record(directory)
    except ValueError as error:
        yield str(error)
        return
    if record is None:
        yield from _converted(directory) if dist.get_rank() == 0 else ()
        return
    names = sorted(record, key=lambda name: (-record[name].num_bytes, name))
    for name in names[dist.get_rank() :: dist.get_world_size()]:
        yield from absent(directory, {name: record[name]}) or _changed(directory / name, name, record[name])


def _changed(path: Path, name: str, wanted: FileDigest) -> list[str]:
    try:
        found = digest_file(path)
    except OSError as error:
        return [f"{name} cannot be read ({error.strerror})"]
    return [] if found == wanted.sha256 else [f"{name} is not what was written: its sha256 has changed"]


def _converted(directory: Path) -> list[str]:
    """Faults by the record of the conversion that wrote this checkpoint; the files beside it may have been edited."""
    root, here = directory.parent.parent, f"{directory.parent.name}/{directory.name}/"
    try:
        record = checksums.read_record(root) or {"files": {}, "beside": {}}
        ours = {part: {name: entry for name, entry in record[part].items() if name.startswith(here)} for part in _PARTS}
        if not ours["files"]:
            _say_unchecked(directory)
        checksums.check_files(root, ours, workers=_READERS)
    except ValueError as error:
        return [str(error)]
    return []


def _say_unchecked(directory: Path) -> None:
    if directory not in _unchecked_said:
        _unchecked_said.add(directory)
        print(f"{directory}: has no {RECORD} (merged or older): loaded unchecked", file=sys.stderr)


def _listed(found: list[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
