"""Losses of preference optimization, by explicit name, on log-probabilities of whole answers.

Every loss is a function of one number per pair, the margin

    margin = log [π(chosen) / π_ref(chosen)] − log [π(rejected) / π_ref(rejected)]

where the log-probability of an answer is the sum over its targets, or their mean where `averages_over_tokens`.
The functions compute in the dtype that they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["sigmoid", "cdpo", "ipo", "ipo_sum", "hinge", "robust"]
_SMOOTHED = ("cdpo", "robust")


@dataclass(frozen=True)
class PreferenceLoss:
    """Which loss, and its settings.

    Attributes:
        loss: name of one of the functions below.
        beta: how strongly the policy is held to the reference; the inverse temperature of the rewards.
        label_smoothing: share of the pairs that are taken to be labelled the wrong way round; for `cdpo` and `robust`.
        length_normalised: log-probabilities are means over the targets of an answer, not sums. `ipo` always does this.
    """

    loss: LossName
    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalised: bool = False

    def __post_init__(self) -> None:
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise ValueError(f"dpo.beta = {self.beta}: must be above 0")
        if self.loss in _SMOOTHED and not 0 < self.label_smoothing < 0.5:
            raise ValueError(
                f"dpo.label_smoothing = {self.label_smoothing}: {self.loss} needs a share above 0 and below 0.5 "
                "(without smoothing it is `sigmoid`)"
            )
        if self.loss not in _SMOOTHED and self.label_smoothing:
            raise ValueError(
                f"dpo.label_smoothing = {self.label_smoothing} has no effect on {self.loss}: leave it out, or choose "
                "`cdpo` (the smoothed sigmoid) or `robust`"
            )
        if self.length_normalised and self.loss in ("ipo", "ipo_sum"):
            other = "leave it out: `ipo` averages over tokens" if self.loss == "ipo" else "use `ipo`, which is that"
            raise ValueError(f"dpo.length_normalised: true with {self.loss}: {other}")

    @property
    def averages_over_tokens(self) -> bool:
        """True where the log-probability of an answer is the mean over its targets."""
        return self.length_normalised or self.loss == "ipo"

    @property
    def value_at_reference(self) -> float:
        """The loss of a policy that is its own reference, whatever the pair."""
        return float(self(torch.zeros((), dtype=torch.float64)))

    def __call__(self, margins: Tensor) -> Tensor:
        """Loss of each pair, same shape and dtype as `margins`."""
        smoothing = {"label_smoothing": self.label_smoothing} if self.loss in _SMOOTHED else {}
        return LOSSES[self.loss](margins, beta=self.beta, **smoothing)


class PairLogps(NamedTuple):
    """Sums of log-probabilities over the targets of each answer, both [n]."""

    chosen: Tensor
    rejected: Tensor


class Rewards(NamedTuple):
    """What the policy thinks an answer is worth: `beta` × (log-probability − that of the reference), both [n]."""

    chosen: Tensor
    rejected: Tensor


def log_ratios(settings: PreferenceLoss, policy: PairLogps, reference: PairLogps, num_targets: PairLogps) -> PairLogps:
    """Policy over reference of each answer, summed or averaged over its targets as `settings` say.

    Args:
        settings: the loss.
        policy: log-probabilities under the policy.
        reference: log-probabilities under the reference.
        num_targets: number of targets of each answer, above 0.
    """
    chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
    if settings.averages_over_tokens:
        chosen, rejected = chosen / num_targets.chosen, rejected / num_targets.rejected
    return PairLogps(chosen, rejected)


def rewards(settings: PreferenceLoss, ratios: PairLogps) -> Rewards:
    """Implicit rewards (Rafailov et al. 2023, §4)."""
    return Rewards(settings.beta * ratios.chosen, settings.beta * ratios.rejected)


def sigmoid(margins: Tensor, *, beta: float) -> Tensor:
    """−log σ(β·margin): the loss of DPO (Rafailov et al. 2023, eq. 7)."""
    return -F.logsigmoid(beta * margins)


def cdpo(margins: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """−(1 − ε)·log σ(β·margin) − ε·log σ(−β·margin): labels are wrong with probability ε (Mitchell 2023)."""
    return (1 - label_smoothing) * sigmoid(margins, beta=beta) + label_smoothing * sigmoid(-margins, beta=beta)


def robust(margins: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """[(1 − ε)·(−log σ(β·margin)) − ε·(−log σ(−β·margin))] / (1 − 2ε): unbiased (Chowdhury et al. 2024, eq. 12)."""
    clean, flipped = sigmoid(margins, beta=beta), sigmoid(-margins, beta=beta)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge(margins: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 − β·margin) (Zhao et al. 2023, on the ratios of DPO)."""
    return torch.relu(1 - beta * margins)


def ipo(margins: Tensor, *, beta: float) -> Tensor:
    """(margin − 1 / 2β)² of token means (Azar et al. 2023, eq. 17; the mean as in trl: `DPOTrainer`)."""
    return (margins - 1 / (2 * beta)) ** 2


def ipo_sum(margins: Tensor, *, beta: float) -> Tensor:
    """(margin − 1 / 2β)² of token sums, as the paper writes it; it grows with the length of answers."""
    return ipo(margins, beta=beta)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "sigmoid": sigmoid,
    "cdpo": cdpo,
    "ipo": ipo,
    "ipo_sum": ipo_sum,
    "hinge": hinge,
    "robust": robust,
}
