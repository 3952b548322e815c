"""What a chain of commands consists of, in the full run and in the reduced one."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """One command of the chain.

    Attributes:
        name: unique; also the name of its log and record.
        command: words of the command line; `{run}` stands for the run directory, `{processes}` for the number of
            processes of a distributed stage: two on a CPU, else the number of GPUs up to two, `{seed}` for the seed.
        needs: names of stages whose outputs it reads.
        after: names of stages to wait for without reading their outputs, so that cores are used well.
        outputs: paths below the run directory that the stage writes.
        cores: processor cores it keeps busy.
        expected_s: usual duration on two quiet cores, for the ETA.
        quick: further words for the reduced run; None leaves the stage out of it.
        quick_expected_s: usual duration of the reduced run.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    cores: int = 1
    expected_s: float = 10.0
    quick: tuple[str, ...] | None = ()
    quick_expected_s: float = 5.0


@dataclass(frozen=True)
class ChainConfig:
    """What to run, and on what.

    Attributes:
        stages: in an order in which each comes after those it needs.
        cores: how many they may share.
        disk_gb: free space that a whole run wants, looked at before it begins.
    """

    stages: tuple[Stage, ...]
    cores: int = 2
    disk_gb: float = 0.0


def check_needs(config: ChainConfig) -> None:
    """Raise ValueError if a stage needs one that does not exist."""
    names = {stage.name for stage in config.stages}
    for stage in config.stages:
        for need in stage.needs + stage.after:
            if need not in names:
                raise ValueError(f"stage {stage.name}: needs {need!r}, which is not a stage")


def reduced(config: ChainConfig) -> ChainConfig:
    """The stages of the reduced run; what needs one that is left out does without it."""
    kept = [stage for stage in config.stages if stage.quick is not None]
    names = {stage.name for stage in kept}

    def without(needs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in needs if name in names)

    stages = tuple(replace(stage, needs=without(stage.needs), after=without(stage.after)) for stage in kept)
    return replace(config, stages=stages)
