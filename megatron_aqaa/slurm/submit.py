"""Batch files to files and to SLURM, each after those that it waits for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_aqaa.slurm.config import JobConfig
from megatron_aqaa.whole_file import write_whole


@dataclass(frozen=True)
class Batch:
    """A rendered job."""

    job: JobConfig
    text: str


class SubmissionFailed(RuntimeError):
    """SLURM refused a job; the message says why, and which jobs of the chain it has already."""


def sbatch_options(needs: Sequence[str]) -> list[str]:
    """Make a job wait until the jobs `needs` have succeeded; if one fails, it is cancelled."""
    return [f"--dependency=afterok:{':'.join(needs)}", "--kill-on-invalid-dep=yes"] if needs else []


def write_batch(batch: Batch, directory: Path) -> Path:
    """Write it as `directory/<job>.sbatch`."""
    path = directory / f"{batch.job.name}.sbatch"
    write_whole(path, batch.text)
    return path


def submit(batches: Iterable[Batch]) -> dict[str, str]:
    """Submit all, in order; writes each file into its log directory first.

    Returns:
        Name of a job → its id.

    Raises:
        ValueError: there is no SLURM here.
        SubmissionFailed: SLURM refused a job.
    """
    if shutil.which("sbatch") is None:
        raise ValueError("sbatch: not found; submit where SLURM is, or print the batch files with --dry-run")
    ids: dict[str, str] = {}
    for batch in batches:
        path = write_batch(batch, batch.job.slurm.log_directory)
        options = sbatch_options([ids[name] for name in batch.job.needs])
        done = subprocess.run(["sbatch", "--parsable", *options, str(path)], capture_output=True, text=True)
        if done.returncode:
            there = f"; submitted before: scancel {' '.join(ids.values())}" if ids else ""
            raise SubmissionFailed(f"{path}: {done.stderr.strip()}{there}")
        ids[batch.job.name] = done.stdout.strip().partition(";")[0]  # `id;cluster`
    return ids
