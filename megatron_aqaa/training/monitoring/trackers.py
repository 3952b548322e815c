"""Boards that a run's numbers can be sent to beside its log: TensorBoard and Weights & Biases, both optional."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import uuid
from pathlib import Path
from typing import Any, Protocol

from megatron_aqaa.training.lm_config import LoopConfig, TrainConfig


class Tracker(Protocol):
    """A board."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Show finite numbers of a step."""

    def close(self) -> None:
        """Send what is left."""


def require_trackers(loop: LoopConfig) -> None:
    """Raises ValueError if a board is asked for whose package is missing; on every rank, before anything is built."""
    asked = {"tensorboard": ("tensorboard", loop.tensorboard), "wandb": ("wandb_project", bool(loop.wandb_project))}
    for package, (setting, wanted) in asked.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"training.{setting} needs the package {package}: pip install 'megatron-aqaa[track]', or leave it out"
            )


def open_trackers(config: TrainConfig, step: int) -> list[Tracker]:
    """The boards that `config` asks for, on the one rank that writes.

    Args:
        config: of the run.
        step: that the run continues after.
    """
    trackers: list[Tracker] = []
    if config.training.tensorboard:
        trackers.append(TensorBoard(config.run / "tensorboard", step))
    if config.training.wandb_project:
        trackers.append(WeightsAndBiases(config))
    return trackers


class TensorBoard:
    """`tensorboard --logdir <run>/tensorboard`; a resumed run hides what was written after its checkpoint."""

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """As `Tracker.log`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """As `Tracker.close`."""
        self.writer.close()


class WeightsAndBiases:
    """One run there for a run directory, through all its sessions: `<run>/wandb_id` says which."""

    def __init__(self, config: TrainConfig) -> None:
        import wandb

        path = config.run / "wandb_id"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(uuid.uuid4().hex[:8])
        self.run = wandb.init(
            project=config.training.wandb_project,
            name=config.run.name,
            id=path.read_text(),
            resume="allow",
            dir=str(config.run),
            config=dataclasses.asdict(config),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """As `Tracker.log`."""
        self.run.log(values, step=step)

    def close(self) -> None:
        """As `Tracker.close`."""
        self.run.finish()


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a log record, but for its step."""
    return {
        name: float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
