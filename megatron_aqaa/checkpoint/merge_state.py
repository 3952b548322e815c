"""What the output of a merge knows of it: a note of what is done, later the record, and a lock while one is at work."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_aqaa.checkpoint.stored_tensors import OutputFile

RECORD = "merge_record.json"
STATE = "merge_state.json"  # what is done, while the record is not yet there
Digests = dict[str, list[str]]
"""Region of a file → sha256 of each model's elements."""


@contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """Hold the directory. The lock is on itself: a file for it would stay in the result.

    Raises:
        ValueError: another process holds it.
    """
    descriptor = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"{output}: another process is at work here; wait for it, or name another output") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def partial_path(path: Path) -> Path:
    """Where a file is before it is whole."""
    return path.with_name(path.name + ".partial")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a file that is whole or not there, also after a power cut."""
    partial = partial_path(path)
    with partial.open("w") as stream:
        stream.write(json.dumps(values, indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)


def earlier_merge(
    output: Path, digest: str, files: list[OutputFile], names_beside: list[str]
) -> tuple[dict[str, Digests], list[str]]:
    """Files of an earlier run that still count, and those that do not and will go.

    Args:
        output: directory.
        digest: of the merge that is wanted.
        files: that it writes.
        names_beside: what it writes anew in any case.

    Raises:
        ValueError: `output` holds something that no merge made, or a note that cannot be read.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return {}, []
    note = next((output / name for name in (RECORD, STATE) if (output / name).exists()), None)
    if note is None:
        raise ValueError(f"{output}: is there already and no merge made it; name another output, or remove it")
    try:
        earlier = json.loads(note.read_text())
        earlier_digest, names, marked = earlier["digest"], earlier["files"], earlier["done"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{note}: cannot be read ({error}); remove {output} and merge again") from None
    if earlier_digest != digest:
        return {}, [name for name in names if name not in names_beside]
    sizes = {output / file.name: file.size for file in files}
    done = {
        name: digests
        for name, digests in marked.items()
        if (output / name).exists() and (output / name).stat().st_size == sizes[output / name]
    }
    return done, [name for name in names if name not in names_beside and output / name not in sizes]
