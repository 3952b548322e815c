"""What a job's command needs of its nodes, and whether the nodes are enough."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_aqaa.slurm.config import JobConfig


@dataclass(frozen=True)
class Needs:
    """Of a training run, as its YAML says; of other commands, nothing.

    Attributes:
        model_parallel_size: processes that hold one copy of the model.
        micro_batch_size: sequences per forward pass of a data-parallel rank.
        global_batch_size: sequences per step.
        reads: files and directories that must be there.
        writes: directories that must take files.
    """

    model_parallel_size: int = 1
    micro_batch_size: int = 1
    global_batch_size: int | None = None
    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()


def check_layout(job: JobConfig, needs: Needs) -> None:
    """Whether the job's processes hold whole copies of the model and divide its batch.

    Raises:
        ValueError: they do not; says what was found, and how many would.
    """
    slurm, size = job.slurm, needs.model_parallel_size
    processes = f"{job.name}: {slurm.nodes} nodes × {slurm.tasks_per_node} processes = {slurm.world_size}"
    if slurm.world_size % size:
        multiple = -(-slurm.world_size // size) * size
        raise ValueError(
            f"{processes} cannot hold copies of a model over {size} (tensor × pipeline × context parallel); the next "
            f"number that can is {multiple}: change slurm.nodes, or the sizes under `parallel`"
        )
    copies = slurm.world_size // size
    if needs.global_batch_size is not None and needs.global_batch_size % (needs.micro_batch_size * copies):
        raise ValueError(
            f"{processes} are {copies} copies of the model, but training.global_batch_size = {needs.global_batch_size} "
            f"is no multiple of micro_batch_size × copies = {needs.micro_batch_size} × {copies}"
        )
