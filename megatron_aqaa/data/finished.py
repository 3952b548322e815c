"""Data sets that need not be made again.

Beside its files each has a `.json` with its counts and a digest of what it was made from, written last: a run that was
stopped goes on with the first set that has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_aqaa.data.indexed import documents_exist
from megatron_aqaa.whole_file import write_json


def stamp(path: Path) -> tuple[str, int, int]:
    """Changes when a file is written anew."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def digest_of(settings: Any, files: Iterable[Path] = ()) -> str:
    """Changes with the settings, which hold what JSON or `str` can write, and with every file."""
    content = [settings, [stamp(path) for path in files]]
    return hashlib.sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()


def record_of(prefix: str | Path) -> dict[str, Any]:
    """What was noted of a data set; nothing if there is no note."""
    path = Path(f"{prefix}.json")
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return record


def finished(prefix: Path, digest: str) -> dict[str, Any] | None:
    """The record of a data set that is complete and was made from the same inputs."""
    record = record_of(prefix)
    if record.pop("digest", None) != digest or (record["documents"] and not documents_exist(prefix)):
        return None
    return record


def finish(prefix: Path, digest: str, record: dict[str, Any]) -> None:
    """Note that the data set under `prefix` is complete; `record` tells at least its number of `documents`."""
    write_json(Path(f"{prefix}.json"), {"digest": digest, **record})
