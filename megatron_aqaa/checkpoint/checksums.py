"""Checksums of a converted checkpoint: recorded for every tensor part while it is written, compared when it is read.

A recorded file is its regions and the bytes between them, so that every byte belongs to a checksum that has a name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from megatron_aqaa.checkpoint.elements import write_fully
from megatron_aqaa.checkpoint.output_files import OutputFile

RECORD = "conversion_record.json"
FileRecord = dict[str, Any]
"""`size`, `between` (sha256 of the bytes outside the regions), `regions`: [[name, start, num_bytes, sha256], ...]."""
_BLOCK = 4 << 20


def file_record(file: OutputFile, regions: Iterable[tuple[str, int, int, str]]) -> FileRecord:
    """Of a file that was written.

    Args:
        file: as it was planned.
        regions: name, first byte, number of bytes, sha256 of each.
    """
    between = hashlib.sha256()
    for _, data in sorted(file.literals):
        between.update(data)
    return {"size": file.size, "between": between.hexdigest(), "regions": sorted(regions, key=lambda r: r[1:3])}


def digest_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(root: Path) -> dict[str, Any] | None:
    """The record of a finished conversion, None where there is none.

    Raises:
        ValueError: it cannot be read.
    """
    path = root / RECORD
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return record if record["files"] is not None else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); copy the checkpoint again, or remove this file to go on "
                         "without checksums") from None  # fmt: skip


def check_files(
    root: Path,
    record: dict[str, Any],
    workers: int = 1,
    on_progress: Callable[[int], Any] = lambda done_bytes: None,
) -> None:
    """Read everything and compare with the record.

    Args:
        root: directory of the record.
        record: from `read_record`.
        workers: threads.
        on_progress: called with the number of bytes that were read.

    Raises:
        ValueError: something is missing or changed; names file and tensor.
    """
    for name, digest in record["beside"].items():
        if not (root / name).exists() or digest_file(root / name) != digest:
            raise ValueError(f"{root / name}: missing or changed since {RECORD} was written; {_REMEDY}")
    parts = [part for name, file in record["files"].items() for part in _parts(root / name, file)]
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        for size in pool.map(lambda part: _check(*part), parts):
            done += size
            on_progress(done)


_REMEDY = "copy the checkpoint again, or convert again from its source"


def _parts(path: Path, record: FileRecord) -> Iterator[tuple[Path, str, list[tuple[int, int]], str]]:
    """Path, name, byte ranges, wanted sha256."""
    size = path.stat().st_size if path.exists() else 0
    if size != record["size"]:
        raise ValueError(f"{path}: missing or truncated: {size} bytes, {record['size']} were written; {_REMEDY}")
    gaps, position = [], 0
    for name, start, length, digest in record["regions"]:
        gaps.append((position, start - position))
        position = start + length
        yield path, name, [(start, length)], digest
    yield path, "header and trailer", [*gaps, (position, size - position)], record["between"]


def _check(path: Path, name: str, ranges: list[tuple[int, int]], wanted: str) -> int:
    digest, buffer = hashlib.sha256(), bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        for start, length in ranges:
            file.seek(start)
            left = length
            while left:
                count = file.readinto(memoryview(buffer)[: min(left, _BLOCK)])
                if not count:
                    raise ValueError(f"{path}: ends within {name}; {_REMEDY}")
                digest.update(memoryview(buffer)[:count])
                left -= count
    if digest.hexdigest() != wanted:
        raise ValueError(f"{path}: {name} is not what was written: its sha256 is {digest.hexdigest()[:16]}…, recorded "
                         f"{wanted[:16]}…; {_REMEDY}")  # fmt: skip
    return sum(length for _, length in ranges)


class DigestedRegion:
    """Writes a region front to back and digests it on the way.

    Args:
        descriptor: of the open file.
        start: first byte.
    """

    def __init__(self, descriptor: int, start: int) -> None:
        self._descriptor, self._position = descriptor, start
        self._digest = hashlib.sha256()

    def write(self, data: memoryview) -> None:
        """The next bytes."""
        self._digest.update(data)
        write_fully(self._descriptor, data, self._position)
        self._position += len(data)

    def hexdigest(self) -> str:
        """sha256 of all bytes so far."""
        return self._digest.hexdigest()
