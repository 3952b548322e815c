"""Steps that would do harm are skipped: a loss or gradient norm that is no number, or a loss far above the last ones.

A skipped step leaves weights, optimizer and schedule as they were, on every rank alike; the data position moves on.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from megatron_aqaa import platform

Judge = Callable[[float, float], bool]
"""(loss, gradient norm) → whether the step counts; the answer is the same on every rank. Asked once a step."""

_DEVIATIONS_PER_MAD = 1.4826  # of a normal distribution


def always(loss: float, grad_norm: float) -> bool:
    """The judge to whom every step counts."""
    return True


@dataclass(frozen=True)
class GuardConfig:
    """When a step is skipped, and when the run gives up.

    A loss is a spike if it lies above the median of the last `spike_window` losses both by more than
    `spike_deviations` deviations (1.4826 × their median absolute deviation) and by more than `least_spike`. The rule
    holds once the window is full. A loss or gradient norm that is NaN or infinite is never let through.

    Attributes:
        spike_deviations: None lets every finite loss through.
        least_spike: in the loss's own unit, so that a run whose loss hardly moves may move.
        spike_window: steps that were not skipped.
        max_skipped_in_a_row: so many end the run.
        max_skipped: so many in all, earlier sessions included, end the run.
    """

    spike_deviations: float | None = 10.0
    least_spike: float = 1.0
    spike_window: int = 100
    max_skipped_in_a_row: int = 10
    max_skipped: int = 100

    def __post_init__(self) -> None:
        if self.spike_deviations is not None and not self.spike_deviations > 0:
            raise ValueError(f"guards.spike_deviations = {self.spike_deviations}: must be above 0, or null for no rule")
        if not self.least_spike >= 0:
            raise ValueError(f"guards.least_spike = {self.least_spike}: must be at least 0")
        for name in ("spike_window", "max_skipped_in_a_row", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"guards.{name} = {getattr(self, name)}: must be at least 1")


class Past(NamedTuple):
    """What the guards know of earlier steps.

    Attributes:
        losses: of the last steps that counted, newest last.
        skipped: steps skipped so far.
        skipped_in_a_row: of these, the ones since the last step that counted.
    """

    losses: tuple[float, ...] = ()
    skipped: int = 0
    skipped_in_a_row: int = 0


class Guards:
    """The judge of a run. What is agreed between the ranks in the same breath: whether someone asked to stop.

    Args:
        config: the rules.
        stop_requested: read on every rank at every step.
        past: the same on every rank.

    Attributes:
        objection: why the last step was skipped; None if it counted.
        stopping: some rank was asked to stop.
        skipped: steps skipped so far.
    """

    def __init__(self, config: GuardConfig, stop_requested: Callable[[], bool], past: Past) -> None:
        self.config, self.stop_requested = config, stop_requested
        self.losses = deque(past.losses, maxlen=config.spike_window)
        self.skipped, self.skipped_in_a_row = past.skipped, past.skipped_in_a_row
        self.objection: str | None = None
        self.stopping = False

    def __call__(self, loss: float, grad_norm: float) -> bool:
        """A `Judge`; collective."""
        self.objection = self.objection_to(loss, grad_norm)
        self.stopping, skips = agreed(self.stop_requested(), self.objection is not None)
        if skips:
            self.objection = self.objection or "another rank objected"
            self.skipped += 1
            self.skipped_in_a_row += 1
        else:
            self.losses.append(loss)
            self.skipped_in_a_row = 0
        return not skips

    def objection_to(self, loss: float, grad_norm: float) -> str | None:
        """What speaks against a step, by this rank's numbers."""
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        if not self.losses or loss <= min(self.losses) + self.config.least_spike:  # below any limit: saves two medians
            return None
        limit = self.limit()
        return f"loss {loss:.4g} is a spike: above {limit:.4g}" if loss > limit else None

    def limit(self) -> float:
        """The highest loss that is no spike."""
        deviations = self.config.spike_deviations
        if deviations is None or len(self.losses) < self.config.spike_window:
            return math.inf
        median = statistics.median(self.losses)
        deviation = _DEVIATIONS_PER_MAD * statistics.median(abs(loss - median) for loss in self.losses)
        return median + max(deviations * deviation, self.config.least_spike)

    def give_up_at_limit(self, step: int) -> None:
        """Raises FloatingPointError if too many steps were skipped."""
        config = self.config
        if self.skipped_in_a_row < config.max_skipped_in_a_row and self.skipped < config.max_skipped:
            return
        raise FloatingPointError(
            f"step {step} was skipped ({self.objection}), the {self.skipped_in_a_row}. in a row and the "
            f"{self.skipped}. in all; the limits are guards.max_skipped_in_a_row = {config.max_skipped_in_a_row} and "
            f"guards.max_skipped = {config.max_skipped}. Lower optimizer.learning_rate, or look at the documents that "
            "the files in `skipped` of the run directory name"
        )


def agreed(*flags: bool) -> list[bool]:
    """Each flag is true on every rank if it is true on one; one small all-reduce for all of them."""
    if torch.distributed.get_world_size() == 1:
        return list(flags)
    values = torch.tensor(flags, dtype=torch.int32, device=platform.device())
    torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]
