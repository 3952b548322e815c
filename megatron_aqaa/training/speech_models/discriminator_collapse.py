"""Notices that discriminators have nothing left to teach, and says how, before the generator learns to buzz."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CollapseConfig:
    """When discriminators count as collapsed.

    Attributes:
        min_spread: below this standard deviation of their scores they say the same of everything; the published ones
            begin at 2e-3 and are at 4e-2 after three steps.
        won_ratio: once their loss is below this share of its first value, they tell all apart.
        patience: either for so many steps in a row, on average; 0 switches the guard off.
        smoothing: weight of the past in the averages.
    """

    min_spread: float = 1e-4
    won_ratio: float = 0.01
    patience: int = 200
    smoothing: float = 0.95


class CollapseGuard:
    """Follows the discriminators step by step; `check` raises once they have collapsed.

    Its state belongs to the checkpoint: a resumed run stops where the uninterrupted one would.
    """

    def __init__(self, config: CollapseConfig) -> None:
        self.config = config
        self.first_loss = self.loss = self.spread = -1.0  # none yet
        self.steps_dead = self.steps_won = 0

    def check(self, step: int, loss: float, spread: float) -> None:
        """Take note of a step.

        Args:
            step: its number.
            loss: how badly the discriminators tell natural from generated, before this step's update.
            spread: standard deviation of their scores.

        Raises:
            FloatingPointError: collapsed; names step, values and remedy.
        """
        self._follow(loss, spread)
        patience = self.config.patience
        if patience and self.steps_dead >= patience:
            raise FloatingPointError(
                f"discriminators collapsed: for {self.steps_dead} steps up to step {step} they scored everything alike "
                f"(spread {self.spread:.3g}, loss {self.loss:.4g}), so the generator learns nothing from them; lower "
                f"their learning rate, or start them anew beside the trained generator"
            )
        if patience and self.steps_won >= patience:
            raise FloatingPointError(
                f"discriminators won: for {self.steps_won} steps up to step {step} their loss of {self.loss:.3g} was "
                f"below {self.config.won_ratio:.2g} times the {self.first_loss:.4g} that it began with, so the "
                f"generator is only pushed away; lower their learning rate, or raise the generator's"
            )

    def _follow(self, loss: float, spread: float) -> None:
        if self.first_loss < 0:
            self.first_loss, self.loss, self.spread = loss, loss, spread
        smoothing = self.config.smoothing
        self.loss = smoothing * self.loss + (1 - smoothing) * loss
        self.spread = smoothing * self.spread + (1 - smoothing) * spread
        self.steps_dead = self.steps_dead + 1 if self.spread < self.config.min_spread else 0
        self.steps_won = self.steps_won + 1 if self.loss < self.config.won_ratio * self.first_loss else 0

    def state_dict(self) -> dict[str, float]:
        """Five numbers."""
        return {name: vars(self)[name] for name in ("first_loss", "loss", "spread", "steps_dead", "steps_won")}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on where `state_dict` was taken."""
        vars(self).update(state)
