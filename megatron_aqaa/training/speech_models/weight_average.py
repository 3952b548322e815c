"""Exponential moving average of a network's weights: what is validated and exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch


class WeightAverage:
    """Follows parameters; does nothing with a decay of 0.

    Not `torch.optim.swa_utils.AveragedModel`: that keeps a second network; this one goes into checkpoints as a list.

    Args:
        parameters: trained ones, in order.
        decay: weight of the past.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [parameter.detach().clone() for parameter in self.parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after `step` steps; a plain mean at first, so that the start is soon forgotten."""
        if self.values:
            torch._foreach_lerp_(self.values, self.parameters, max(1.0 - self.decay, 1.0 / (step + 1)))

    @torch.no_grad()
    def use(self) -> None:
        """Put the average in place of the weights."""
        if self.values:
            torch._foreach_copy_(self.parameters, self.values)

    def load(self, values: list[torch.Tensor]) -> None:
        """Go on from the `values` of a checkpoint."""
        self.values = values if self.decay else []

    @contextlib.contextmanager
    def in_use(self, network: torch.nn.Module) -> Iterator[torch.nn.Module]:
        """For a while: the network with averaged weights, in evaluation mode; then training goes on with its own."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self.use()
        try:
            yield network.eval()
        finally:
            network.train()
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, own)
