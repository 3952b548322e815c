"""What a node can find out about itself."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from megatron_aqaa.platform.gpus import free_gpu_memory_bytes, num_gpus
from megatron_aqaa.slurm.config import PreflightConfig


def gpu_problems(wanted: int, least_free_gb: float) -> list[str]:
    """Of this process's GPU, where GPUs are asked for."""
    if not wanted:
        return []
    found = num_gpus()
    if found != wanted:
        return [f"{found} GPUs can be used, {wanted} were asked for: look at nvidia-smi and the container's driver"]
    free_gb = free_gpu_memory_bytes() / 1e9
    if free_gb < least_free_gb:
        return [f"{free_gb:.1f} GB of GPU memory are free, {least_free_gb:g} wanted: another process holds the rest"]
    return []


def path_problems(reads: Iterable[str], writes: Iterable[str], limits: PreflightConfig) -> list[str]:
    """Of storage, as this node sees it; `$NAME` in a path is expanded here."""
    problems = [_unreadable(Path(os.path.expandvars(path))) for path in reads]
    for path in map(Path, map(os.path.expandvars, writes)):
        problems.append(_unwritable(path) or _too_full(path, limits.min_free_disk_gb))
    return [problem for problem in problems if problem]


def _unreadable(path: Path) -> str | None:
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            with path.open("rb") as file:
                file.read(1)
    except OSError as error:
        return f"cannot read {path}: {error.strerror}"
    return None


def _unwritable(path: Path) -> str | None:
    """Writes for real: of a full, read-only or stale file system, permissions tell nothing."""
    probe = path / f".preflight-{os.uname().nodename}-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"cannot write into {path}: {error.strerror}"
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return None


def _too_full(path: Path, least_free_gb: float) -> str | None:
    free_gb = shutil.disk_usage(path).free / 1e9
    if free_gb >= least_free_gb:
        return None
    return f"{free_gb:.1f} GB are free at {path}, {least_free_gb:g} wanted"
