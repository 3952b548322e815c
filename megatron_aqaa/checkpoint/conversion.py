"""Carries a planned conversion out: file by file in blocks, resumable, and nowhere to be seen before it is whole.

Everything is written to `<output>.partial`, which is renamed at the end. A conversion that was interrupted continues
there with the next file, unless its source or its settings have changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform as host
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import megatron_aqaa
from megatron_aqaa import platform
from megatron_aqaa.checkpoint.checksums import (
    RECORD,
    DigestedRegion,
    FileRecord,
    check_files,
    digest_file,
    file_record,
    read_record,
)
from megatron_aqaa.checkpoint.output_directory import alone_in, check_disk
from megatron_aqaa.checkpoint.pieces import Pieces
from megatron_aqaa.checkpoint.stored_tensors import (
    MappedFiles,
    OutputFile,
    OutputTensor,
    Region,
    region_name,
    tensor_bytes,
)
from megatron_aqaa.whole_file import partial_path, write_json

STATE = "conversion_state.json"
DEFAULT_MEMORY_MIB = 512
_LARGEST_BLOCK_BYTES = 2 << 20  # about a second-level cache: a block is read, digested and written
_COPIES = 4  # of a block at most: read, put together, cast, wide for a sum


@dataclass(frozen=True)
class Conversion:
    """What is to be written, from where; every check that needs no tensor has been made.

    Attributes:
        settings: what the user asked for; goes into the record.
        source: directory whose record, if it has one, holds the checksums of what is read.
        source_files: everything that is read; must not change meanwhile.
        output: directory; must not be there.
        files: of weights.
        tensors: that are in them.
        pieces: what each of these tensors is made of.
        finish: writes all other files into the directory it is given, those that make it a checkpoint last.
        notes: what the user should know.
    """

    settings: dict[str, Any]
    source: Path
    source_files: tuple[Path, ...]
    output: Path
    files: list[OutputFile]
    tensors: dict[str, OutputTensor]
    pieces: dict[str, Pieces]
    finish: Callable[[Path], None]
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Of all files of weights."""
        return sum(file.size for file in self.files)

    @property
    def num_parameters(self) -> int:
        """Elements of all written tensors, padded rows included."""
        return sum(torch.Size(tensor.shape).numel() for tensor in self.tensors.values())

    @property
    def work(self) -> Path:
        """Where it is written before it is whole."""
        return partial_path(self.output)

    def digest(self) -> str:
        """Of settings, source and files: equal for a run that may go on with what another has left."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.source_files]
        files = [(file.name, file.size, len(file.regions)) for file in self.files]
        values = [megatron_aqaa.__version__, self.settings, stats, files]
        return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def in_mib(report: Callable[[int], Any]) -> Callable[[int], None]:
    """`on_progress` that reports whole MiB, each once: most blocks end within the same."""
    last = 0

    def on_progress(done_bytes: int) -> None:
        nonlocal last
        if done_bytes >> 20 > last:
            last = done_bytes >> 20
            report(last)

    return on_progress


def check_output(output: Path) -> None:
    """Raise ValueError if something is there already."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: is there already; name another output, or remove it")


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
    with alone_in(work):
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
        (work / STATE).unlink()
        if conversion.output.exists():
            conversion.output.rmdir()
        work.rename(conversion.output)
    return record


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
    counter = _Counter(sum(file["size"] for file in done.values()), on_progress)
    for file in missing:
        writer = _FileWriter(conversion, file, MappedFiles(), block_bytes, counter)
        done[file.name] = writer.write(workers)
        write_json(conversion.work / STATE, {"digest": digest, "done": done})


class _Counter:
    def __init__(self, done: int, on_progress: Callable[[int], Any]) -> None:
        self._done, self._on_progress, self._lock = done, on_progress, threading.Lock()

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            self._on_progress(self._done)


@dataclass
class _FileWriter:
    """One file, whole when it gets its name; its regions side by side, the largest first, one thread each."""

    conversion: Conversion
    file: OutputFile
    mapped: MappedFiles
    block_bytes: int
    counter: _Counter
    stop: threading.Event = field(default_factory=threading.Event)

    def write(self, workers: int) -> FileRecord:
        path = self.conversion.work / self.file.name
        partial = partial_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            try:
                stream.truncate(self.file.size)
                for offset, data in self.file.literals:
                    os.pwrite(stream.fileno(), data, offset)
                regions = self._regions(stream.fileno(), workers)
                os.fsync(stream.fileno())  # it counts as done from here on, also after a power cut
            except OSError as error:
                name = error.filename or path
                raise OSError(error.errno, f"{error.strerror}, writing", str(name)) from error
        partial.rename(path)
        return file_record(self.file, regions)

    def _regions(self, descriptor: int, workers: int) -> list[tuple[str, int, int, str]]:
        largest_first = sorted(self.file.regions, key=lambda region: -region.box.num_elements)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = [pool.submit(self._region, region, descriptor) for region in largest_first]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _region(self, region: Region, descriptor: int) -> tuple[str, int, int, str]:
        tensor = self.conversion.tensors[region.tensor]
        output = DigestedRegion(descriptor, region.start)
        try:
            for box in region.box.blocks(max(1, self.block_bytes // tensor.dtype.itemsize)):
                if self.stop.is_set():
                    break  # the error of another region is the one to tell
                data = tensor_bytes(self.conversion.pieces[region.tensor].read(box, tensor.dtype, self.mapped))
                output.write(data)
                self.counter.add(len(data))
        except ValueError as error:
            raise ValueError(f"{self.conversion.source}: {region.tensor} {error}") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{self.file.name} ({region.tensor})") from error
        num_bytes = region.box.num_elements * tensor.dtype.itemsize
        return region_name(region), region.start, num_bytes, output.hexdigest()


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
