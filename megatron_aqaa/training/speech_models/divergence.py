"""Notices that a small network's training has gone wrong, and says how, before hours of noise are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class DivergenceConfig:
    """When training counts as diverged.

    There is no loss scale to watch: bf16 has the range of fp32 and needs none.

    Attributes:
        ratio: the averaged loss may be so many times its lowest value …
        gradient_ratio: … and the averaged gradient norm so many times its own, or zero, …
        patience: … for so many steps in a row; 0 switches the guard off.
        smoothing: weight of the past in the averages.
    """

    ratio: float = 3.0
    gradient_ratio: float = 100.0
    patience: int = 100
    smoothing: float = 0.95


_NUMBERS = (
    *("average", "lowest", "lowest_step", "steps_above"),
    *("norm", "lowest_norm", "lowest_norm_step", "steps_steep", "steps_still"),
)


class DivergenceGuard:
    """Follows loss and gradient norm step by step; `check` raises once they tell of divergence.

    Its state belongs to the checkpoint: a resumed run stops where the uninterrupted one would.
    """

    def __init__(self, config: DivergenceConfig) -> None:
        self.config = config
        self.average = self.lowest = self.norm = self.lowest_norm = math.inf
        self.lowest_step = self.lowest_norm_step = self.steps_above = self.steps_steep = self.steps_still = 0

    def check(self, step: int, loss: float, grad_norm: float, rate: float) -> None:
        """Take note of a step.

        Raises:
            FloatingPointError: not finite, or diverged; names step, values and remedy.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss {loss} at step {step}: lower the learning rate or check the data")
        if not math.isfinite(grad_norm):
            raise FloatingPointError(
                f"gradient norm {grad_norm} at step {step} with a loss of {loss:.4g}: a logarithm, root or division "
                f"of the loss met zero; check the data for silence, or train without autocast"
            )
        self._follow(step, loss, grad_norm)
        patience, now = self.config.patience, f"(gradient norm {grad_norm:.4g}, rate {rate:.3g})"
        if patience and self.steps_above >= patience:
            raise FloatingPointError(
                f"diverged: the loss averaged {self.lowest:.4g} at step {self.lowest_step} and {self.average:.4g} at "
                f"step {step}, for {self.steps_above} steps above {self.config.ratio:g} times its best {now}; lower "
                f"the learning rate, lengthen the warm-up, or clip harder"
            )
        if patience and self.steps_steep >= patience:
            raise FloatingPointError(
                f"diverged: the gradient norm averaged {self.lowest_norm:.4g} at step {self.lowest_norm_step} and "
                f"{self.norm:.4g} at step {step}, for {self.steps_steep} steps above {self.config.gradient_ratio:g} "
                f"times its least {now}; lower the learning rate or lengthen the warm-up"
            )
        if patience and self.steps_still >= patience:
            raise FloatingPointError(
                f"no gradient for {self.steps_still} steps up to step {step}, with a loss of {loss:.4g}: nothing is "
                f"learned; the loss does not depend on the weights, or all its parts are cut off or saturated"
            )

    def _follow(self, step: int, loss: float, grad_norm: float) -> None:
        self.average, self.norm = self._smoothed(self.average, loss), self._smoothed(self.norm, grad_norm)
        if self.average < self.lowest:
            self.lowest, self.lowest_step = self.average, step
        if 0 < self.norm < self.lowest_norm:
            self.lowest_norm, self.lowest_norm_step = self.norm, step
        above = self.average > self.config.ratio * max(self.lowest, 0.0)
        self.steps_above = self.steps_above + 1 if above and self.lowest > 0 else 0
        self.steps_steep = self.steps_steep + 1 if self.norm > self.config.gradient_ratio * self.lowest_norm else 0
        self.steps_still = self.steps_still + 1 if grad_norm == 0 else 0

    def _smoothed(self, average: float, value: float) -> float:
        smoothing = self.config.smoothing if math.isfinite(average) else 0.0
        return smoothing * average + (1 - smoothing) * value if smoothing else value

    def state_dict(self) -> dict[str, float]:
        """A few numbers."""
        return {name: vars(self)[name] for name in _NUMBERS}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on where `state_dict` was taken."""
        vars(self).update(state)
