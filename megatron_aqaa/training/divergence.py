"""Notices that a small network's training has gone wrong, and says how, before hours of noise are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class DivergenceConfig:
    """When training counts as diverged.

    Attributes:
        ratio: the averaged loss may be so many times its lowest value …
        patience: … for so many steps in a row; 0 switches the guard off.
        smoothing: weight of the past in the average.
    """

    ratio: float = 3.0
    patience: int = 100
    smoothing: float = 0.95


class DivergenceGuard:
    """Follows loss and gradient norm step by step; `check` raises once they tell of divergence.

    Its state belongs to the checkpoint: a resumed run stops where the uninterrupted one would.
    """

    def __init__(self, config: DivergenceConfig) -> None:
        self.config = config
        self.average = self.lowest = math.inf
        self.lowest_step = self.steps_above = 0

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
        self._follow(step, loss)
        if self.config.patience and self.steps_above >= self.config.patience:
            raise FloatingPointError(
                f"diverged: the loss averaged {self.lowest:.4g} at step {self.lowest_step} and {self.average:.4g} at "
                f"step {step}, for {self.steps_above} steps above {self.config.ratio:g} times its best (gradient norm "
                f"{grad_norm:.4g}, rate {rate:.3g}); lower the learning rate, lengthen the warm-up, or clip harder"
            )

    def _follow(self, step: int, loss: float) -> None:
        smoothing = self.config.smoothing if math.isfinite(self.average) else 0.0
        self.average = smoothing * self.average + (1 - smoothing) * loss if smoothing else loss
        if self.average < self.lowest:
            self.lowest, self.lowest_step = self.average, step
        above = self.average > self.config.ratio * max(self.lowest, 0.0)
        self.steps_above = self.steps_above + 1 if above and self.lowest > 0 else 0

    def state_dict(self) -> dict[str, float]:
        """Four numbers."""
        return {name: vars(self)[name] for name in ("average", "lowest", "lowest_step", "steps_above")}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on where `state_dict` was taken."""
        vars(self).update(state)
