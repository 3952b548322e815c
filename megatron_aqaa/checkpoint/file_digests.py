"""`checksums.json` of a checkpoint: size and sha256 of every other file, taken while they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from megatron_aqaa.checkpoint.checksums import digest_file
from megatron_aqaa.checkpoint.directories import RECORD
from megatron_aqaa.whole_file import write_json


class FileDigest(NamedTuple):
    """Size and sha256 of a file."""

    num_bytes: int
    sha256: str


FileDigests = dict[str, FileDigest]
"""By path relative to the checkpoint."""


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_record(directory: Path, digests: FileDigests) -> None:
    """Write `checksums.json`, the last file of a checkpoint; files that nobody digested yet are synced and digested.

    Args:
        directory: of the checkpoint.
        digests: of the files that the ranks have synced to the disk.

    Raises:
        OSError: a file of another rank is not here, or not whole.
    """
    names = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    for name in names - digests.keys():
        sync(directory / name)
        digests = {**digests, name: FileDigest((directory / name).stat().st_size, digest_file(directory / name))}
    elsewhere = absent(directory, digests)
    if elsewhere:
        raise OSError(f"{elsewhere[0]}; is the run's directory on a file system that all nodes share?")
    write_json(directory / RECORD, {"files": {name: digests[name]._asdict() for name in sorted(digests)}})
    sync(directory)


def read_record(directory: Path) -> FileDigests | None:
    """The checksums of a checkpoint; None if it was written without.

    Raises:
        ValueError: the file cannot be read.
    """
    path = directory / RECORD
    if not path.exists():
        return None
    try:
        files = json.loads(path.read_text())["files"]
        return {name: FileDigest(int(file["num_bytes"]), str(file["sha256"])) for name, file in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{RECORD}: cannot be read ({error})") from None


def absent(directory: Path, record: FileDigests) -> list[str]:
    """Files that are missing or of another size, with the reason."""
    sizes = {name: (directory / name).stat().st_size if (directory / name).exists() else None for name in record}
    return [
        f"{name} is missing"
        if sizes[name] is None
        else f"{name} has {sizes[name]} bytes, {wanted.num_bytes} were written"
        for name, wanted in record.items()
        if sizes[name] != wanted.num_bytes
    ]
