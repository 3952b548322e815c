"""What a job asks of SLURM: the sections of a launch file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

TRAINING = ("tools/train.py", "tools/train_dpo.py")
"""Commands that run as many processes; all others work in one."""
SHARDED = ("tools/prepare_chat.py", "tools/tokenize_audio.py")
"""Commands that take `shard=` and `num_shards=`, for the tasks of a job array."""


@dataclass(frozen=True)
class SlurmConfig:
    """What SLURM is asked for, and how a process finds Python.

    Attributes:
        nodes: machines.
        gpus_per_node: 0 for a job on CPUs.
        processes_per_node: None for one per GPU, or one where there is none.
        cpus_per_process: cores for each.
        hours: time limit; the signal comes `signal_lead_s` before it.
        partition: None for the cluster's default.
        account: None for the user's default.
        venv: virtual environment to activate.
        container_image: for `srun --container-image` of pyxis, instead of `venv`; it holds the project's packages.
        container_mounts: further `SOURCE:TARGET` for the container; the directory of submission is always there.
        setup: shell lines before everything else, such as `module load cuda`.
        environment: variables for every process.
        requeue: put the job back in the queue after a stop signal, and let SLURM do so after the loss of a node.
        signal_lead_s: seconds before the time limit at which the job is told to save: a step and a save must fit.
        array_size: shards of data preparation, one array task each; None for a single job.
        log_directory: for output and rendered batch files, on storage that all nodes see.
        extra: further options for `#SBATCH` lines, such as `--exclusive`.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    processes_per_node: int | None = None
    cpus_per_process: int = 1
    hours: float = 24.0
    partition: str | None = None
    account: str | None = None
    venv: Path | None = None
    container_image: str | None = None
    container_mounts: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    environment: dict[str, str | int | float] = field(default_factory=dict)
    requeue: bool = True
    signal_lead_s: int = 300
    array_size: int | None = None
    log_directory: Path = Path("runs/slurm")
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = {"nodes": 1, "gpus_per_node": 0, "cpus_per_process": 1, "signal_lead_s": 0}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise ValueError(f"slurm.{name} = {getattr(self, name)}: must be at least {least}")
        if not (math.isfinite(self.hours) and self.hours * 3600 > self.signal_lead_s):
            raise ValueError(f"slurm.hours = {self.hours}: must be longer than signal_lead_s = {self.signal_lead_s}")
        if self.tasks_per_node < 1 or (self.gpus_per_node and self.tasks_per_node > self.gpus_per_node):
            raise ValueError(
                f"slurm.processes_per_node = {self.processes_per_node}: must lie in 1 … gpus_per_node = "
                f"{self.gpus_per_node}, or be left out for one process per GPU"
            )
        if self.array_size is not None and self.array_size < 1:
            raise ValueError(f"slurm.array_size = {self.array_size}: must be at least 1")
        if self.venv is not None and self.container_image is not None:
            raise ValueError("slurm.venv and slurm.container_image: give one of them, Python comes from there")
        if self.container_mounts and self.container_image is None:
            raise ValueError("slurm.container_mounts needs slurm.container_image")
        for option in self.extra:
            if not option.startswith("-") or "\n" in option:
                raise ValueError(f"slurm.extra: {option!r} is no option of sbatch; write it as `--name=value`")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ValueError(f"slurm.environment: {name!r} cannot be the name of a variable")

    @property
    def tasks_per_node(self) -> int:
        """Processes that `srun` starts on each node."""
        return self.processes_per_node if self.processes_per_node is not None else max(self.gpus_per_node, 1)

    @property
    def world_size(self) -> int:
        """Processes of the job."""
        return self.nodes * self.tasks_per_node

    @property
    def time_limit(self) -> str:
        """`hours` as SLURM writes it."""
        minutes = math.ceil(self.hours * 60)
        return f"{minutes // 1440}-{minutes // 60 % 24:02}:{minutes % 60:02}:00"


@dataclass(frozen=True)
class PreflightConfig:
    """What every node must have before the first step. A limit of 0 asks for nothing; the value is still printed.

    Attributes:
        timeout_s: seconds in which every process must have answered, and again in which all have measured.
        min_free_gpu_memory_gb: of each GPU.
        min_free_disk_gb: where the run writes.
        max_clock_skew_s: of a node, from the median node.
        min_all_reduce_gb_per_s: bus bandwidth over all processes.
        min_link_gb_per_s: of a node, to the better of two neighbours, in each direction, over all its processes.
        message_mib: size of the tensors that are sent.
        readable: further paths that every node must be able to read; `$NAME` is expanded on the node.
        writable: further directories that every node must be able to write into.
    """

    timeout_s: float = 300.0
    min_free_gpu_memory_gb: float = 0.0
    min_free_disk_gb: float = 0.0
    max_clock_skew_s: float = 2.0
    min_all_reduce_gb_per_s: float = 0.0
    min_link_gb_per_s: float = 0.0
    message_mib: int = 64
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.limits().items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"preflight.{name} = {value}: must be a number of at least 0")
        if not (self.timeout_s > 0 and self.message_mib > 0):
            raise ValueError("preflight.timeout_s and preflight.message_mib must be above 0")

    def limits(self) -> dict[str, float]:
        """Everything but the paths, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("readable", "writable")}


@dataclass(frozen=True)
class JobConfig:
    """A launch file: one job.

    Attributes:
        name: of the job, its log and its batch file.
        command: script, its YAML file, and what else it takes, as typed after `python`.
        slurm: what SLURM is asked for.
        preflight: what every node must have.
        needs: names of jobs of a chain that must have succeeded before.
    """

    name: str
    command: tuple[str, ...]
    slurm: SlurmConfig = SlurmConfig()
    preflight: PreflightConfig = PreflightConfig()
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name: {self.name!r} must be of letters, digits, `_`, `.` and `-`: it names files")
        if not self.command:
            raise ValueError(f"{self.name}: command is empty; write it as [tools/train.py, run.yaml]")
        if not self.is_training and self.slurm.world_size > 1:
            raise ValueError(
                f"{self.name}: {self.command[0]} works in one process, not in nodes × processes = "
                f"{self.slurm.world_size}; set slurm.nodes: 1 and slurm.processes_per_node: 1"
            )
        if self.slurm.array_size is not None and self.command[0] not in SHARDED:
            raise ValueError(
                f"{self.name}: slurm.array_size: {self.command[0]} has no shards; arrays are for {', '.join(SHARDED)}"
            )

    @property
    def is_training(self) -> bool:
        """Of many processes that save at SIGUSR1."""
        return self.command[0] in TRAINING
