"""Carries a planned conversion out: file by file in blocks, resumable, and nowhere to be seen before it is whole.

Everything is written to `<output>.partial`, which is renamed at the end. A conversion that was interrupted continues
there with the next file, unless its source or its settings have changed.
"""

from __future__ import annotations

import json
import os
import platform as host
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import megatron_aqaa
from megatron_aqaa import platform
from megatron_aqaa.checkpoint.checksums import RECORD, FileRecord, check_files, digest_file, read_record
from megatron_aqaa.checkpoint.conversion.file_writer import FileWriter
from megatron_aqaa.checkpoint.conversion.plan import Conversion, check_output
from megatron_aqaa.checkpoint.output_directory import alone_in, check_disk
from megatron_aqaa.checkpoint.output_files import OutputFile, byte_counter
from megatron_aqaa.whole_file import write_json

STATE = "conversion_state.json"
DEFAULT_MEMORY_MIB = 512
_LARGEST_BLOCK_BYTES = 2 << 20  # about a second-level cache: a block is read, digested and written
_COPIES = 4  # of a block at most: read, put together, cast, wide for a sum


def in_mib(report: Callable[[int], Any]) -> Callable[[int], None]:
    """`on_progress` that reports whole MiB, each once: most blocks end within the same."""
    last = 0

    def on_progress(done_bytes: int) -> None:
        nonlocal last
        if done_bytes >> 20 > last:
            last = done_bytes >> 20
            report(last)

    return on_progress


def run_conversion(
    conversion: Conversion,
    memory_mib: int = DEFAULT_MEMORY_MIB,
    workers: int | None = None,
    on_progress: Callable[[int], Any] = lambda done_bytes: None,
) -> dict[str, Any]:
    """Write what is not yet done.

    Args:
        conversion: that was planned.
        memory_mib: most memory for tensors, beside what Python and torch take themselves.
        workers: threads; None for one per core, at most four.
        on_progress: called with the bytes written so far, by several threads but one at a time.

    Returns:
        The record, which is also written to `conversion_record.json`.

    Raises:
        ValueError: the output is there, the disk is too small, the source is damaged or changed meanwhile, a value does
            not fit the dtype, or another process is at work in the output.
        OSError: of the disk; the same call goes on where this one ended.
    """
    check_output(conversion.output)
    work, digest = conversion.work, conversion.digest()
    workers = workers or min(4, len(os.sched_getaffinity(0)))
    work.mkdir(parents=True, exist_ok=True)
    with alone_in(work), _disk_errors_named(work):
        done = _earlier(conversion, digest)
        missing = [file for file in conversion.files if file.name not in done]
        check_disk(conversion.output, sum(file.size for file in missing))
        _check_source(conversion, workers)
        _write_files(conversion, missing, done, digest, memory_mib, workers, on_progress)
        if conversion.digest() != digest:
            raise ValueError(f"{conversion.source}: was changed while it was converted; run the same command again, "
                             "which starts anew")  # fmt: skip
        conversion.finish(work)
        record = _record(conversion, done)
        write_json(work / RECORD, record)
        work.rename(conversion.output)  # over an empty directory, if there is one
        (conversion.output / STATE).unlink()
    return record


@contextmanager
def _disk_errors_named(work: Path) -> Iterator[None]:
    """A full disk names no file when it is written to."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, f"{error.strerror}, writing", str(work)) from error
        raise


def _earlier(conversion: Conversion, digest: str) -> dict[str, FileRecord]:
    """What an interrupted run of the same conversion finished; the rest of what is there goes."""
    work = conversion.work
    try:
        state = json.loads((work / STATE).read_text())
        done: dict[str, FileRecord] = state["done"] if state["digest"] == digest else {}
    except (OSError, ValueError, KeyError, TypeError):
        if any(work.iterdir()) and not (work / STATE).exists():
            raise ValueError(f"{work}: is there already and no conversion made it; remove it") from None
        done = {}
    done = {n: r for n, r in done.items() if (work / n).exists() and (work / n).stat().st_size == r["size"]}
    write_json(work / STATE, {"digest": digest, "done": done})
    for path in work.iterdir():
        if path.is_dir() and not any(name.startswith(f"{path.name}/") for name in done):
            shutil.rmtree(path)
        elif path.is_file() and path.name not in (STATE, *done):
            path.unlink()
    return done


def _check_source(conversion: Conversion, workers: int) -> None:
    record = read_record(conversion.source)
    if record and any(conversion.source / name in conversion.source_files for name in record["files"]):
        check_files(conversion.source, record, workers)


def _write_files(
    conversion: Conversion,
    missing: list[OutputFile],
    done: dict[str, FileRecord],
    digest: str,
    memory_mib: int,
    workers: int,
    on_progress: Callable[[int], Any],
) -> None:
    platform.keep_freed_memory()
    block_bytes = max(1 << 12, min(_LARGEST_BLOCK_BYTES, (memory_mib << 20) // (workers * _COPIES)))
    advance = byte_counter(sum(file["size"] for file in done.values()), on_progress)
    writer = FileWriter(conversion, workers, block_bytes, advance)
    for file in missing:
        done[file.name] = writer.write(file)
        write_json(conversion.work / STATE, {"digest": digest, "done": done})


def _record(conversion: Conversion, done: dict[str, FileRecord]) -> dict[str, Any]:
    work = conversion.work
    others = (str(path.relative_to(work)) for path in sorted(work.rglob("*")) if path.is_file())
    beside = {name: digest_file(work / name) for name in others if name != STATE and name not in done}
    return {
        **conversion.settings,
        "files": done,
        "beside": beside,
        "versions": {"megatron_aqaa": megatron_aqaa.__version__, "torch": torch.__version__,
                     "python": host.python_version()},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
