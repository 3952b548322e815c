"""Stages that need each other, as jobs in the order of submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import pydantic

from megatron_aqaa.config import parse_config
from megatron_aqaa.slurm.config import JobConfig, PreflightConfig, SlurmConfig


@dataclass(frozen=True)
class Stage:
    """One job of a chain.

    Attributes:
        name: unique.
        command: as in a launch file.
        needs: names of stages that must have succeeded before.
        slurm: what is other than in the chain's section `slurm`.
        preflight: what is other than in the chain's section `preflight`.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    slurm: dict[str, Any] = field(default_factory=dict)
    preflight: dict[str, Any] = field(default_factory=dict)


def _strict_stage(raw: Any) -> Stage:
    """Pydantic alone would pass over unknown keys here."""
    if isinstance(raw, Stage):
        return raw
    if not isinstance(raw, dict):
        raise ValueError("expected `name:` and `command:`")
    return parse_config(Stage, raw, f"stage {raw.get('name', '?')}")


@dataclass(frozen=True)
class ChainConfig:
    """A chain file.

    Attributes:
        stages: each after those that it needs.
        slurm: of all stages, with the keys of `SlurmConfig`; a stage's own come before.
        preflight: of all stages, with the keys of `PreflightConfig`; a stage's own come before.
    """

    stages: tuple[Annotated[Stage, pydantic.BeforeValidator(_strict_stage)], ...]
    slurm: dict[str, Any] = field(default_factory=dict)
    preflight: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"stage {stage.name}: there are two of this name")
            for need in stage.needs:
                if need not in seen:
                    raise ValueError(f"stage {stage.name}: needs {need!r}, which is no stage before it")
            seen.add(stage.name)

    def jobs(self) -> list[JobConfig]:
        """One for each stage.

        Raises:
            ValueError: a setting is unknown or does not fit; names the stage.
        """
        return [self._job(stage) for stage in self.stages]

    def _job(self, stage: Stage) -> JobConfig:
        slurm = parse_config(SlurmConfig, {**self.slurm, **stage.slurm}, f"stage {stage.name}, slurm")
        raw = {**self.preflight, **stage.preflight}
        preflight = parse_config(PreflightConfig, raw, f"stage {stage.name}, preflight")
        return JobConfig(stage.name, stage.command, slurm, preflight, stage.needs)


def with_arrays(jobs: Sequence[JobConfig]) -> list[JobConfig]:
    """Each job that works in shards becomes an array of them, and one that needs the array and does what is left."""
    result = []
    for job in jobs:
        if job.slurm.array_size is not None:
            shards = replace(job, name=f"{job.name}_shards")
            job = replace(job, slurm=replace(job.slurm, array_size=None), needs=(shards.name,))
            result.append(shards)
        result.append(job)
    return result
