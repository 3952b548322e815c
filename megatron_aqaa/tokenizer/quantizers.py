"""Quantizers inside a network: finite scalar quantization, and a codebook of running means.

Both map hidden states to codes and codes back to states, and pass gradients straight through the choice between.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_aqaa.tokenizer.centroids import nearest_centroid

QuantizerKind = Literal["fsq", "vq_ema"]


@dataclass(frozen=True)
class FsqConfig:
    """Finite scalar quantization: `num_levels ** num_values` codes.

    Attributes:
        num_values: values of a code.
        num_levels: levels of each value.
        balance: weight of what keeps codes in use: levels equally frequent, values uncorrelated.
    """

    num_values: int = 6
    num_levels: int = 4
    balance: float = 0.5


@dataclass(frozen=True)
class VqEmaConfig:
    """Vector quantization by running means.

    Attributes:
        num_codes: vectors.
        code_size: their width; a narrow one keeps more of them in use (Yu et al., arXiv 2110.04627).
        decay: of counts and sums, once a step.
        dead_ratio: a code with less than this share of an even count is put beside a common one.
        commitment: weight of the squared distance of the states to their vectors.
    """

    num_codes: int = 4096
    code_size: int = 16
    decay: float = 0.99
    dead_ratio: float = 0.1
    commitment: float = 0.25


class Quantized(NamedTuple):
    """What comes out of a quantizer in training.

    Attributes:
        embedded: [B, F, D] states that the codes stand for.
        loss: scalar, what the quantizer asks of the states; weighted already.
    """

    embedded: Tensor
    loss: Tensor


class Quantizer(nn.Module, ABC):
    """Hidden states [..., D] ↔ codes [...] 0 … len − 1."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of codes."""

    @abstractmethod
    def forward(self, hidden: Tensor, valid: Tensor) -> Quantized:
        """Quantize with straight gradients: [B, F, D], [B, F] bool (False at padding)."""

    @abstractmethod
    def codes(self, hidden: Tensor) -> Tensor:
        """[..., D] → [...] int64."""

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """[...] codes → [..., D], what the layers after the quantizer saw in training."""


class FiniteScalarQuantizer(Quantizer):
    """Projects to a few values, bounds each and rounds it to one of a few levels (Mentzer et al., arXiv 2309.15505).

    Code `c` written in base `num_levels`, least significant digit first, holds the levels.
    """

    powers: Tensor

    def __init__(self, width: int, config: FsqConfig) -> None:
        super().__init__()
        self.num_levels, self.balance = config.num_levels, config.balance
        self.project_in = nn.Linear(width, config.num_values)
        self.project_out = nn.Linear(config.num_values, width)
        self.register_buffer("powers", config.num_levels ** torch.arange(config.num_values), persistent=False)

    def __len__(self) -> int:
        return self.num_levels ** len(self.powers)

    def forward(self, hidden: Tensor, valid: Tensor) -> Quantized:
        """See `Quantizer.forward`."""
        bounded = self._bounded(hidden)
        levels = _rounded_straight(bounded)
        return Quantized(self.embed_levels(levels), self.balance * self._imbalance(bounded[valid]))

    def _imbalance(self, bounded: Tensor) -> Tensor:
        """How far values [N, values] are from equally frequent levels (in nats) and from no correlation (squared)."""
        distance = bounded[..., None] - torch.arange(self.num_levels, device=bounded.device)
        share = torch.softmax(-4 * distance.square(), -1).mean(0)  # a value midway between two levels counts for both
        surplus = math.log(self.num_levels) + torch.special.xlogy(share, share).sum(-1).mean()
        centred = bounded - bounded.mean(0)
        scaled = centred / centred.square().mean(0).clamp(min=1e-4).sqrt()
        correlation = scaled.T @ scaled / len(scaled)
        return surplus + (correlation - torch.diag(correlation.diag())).square().sum() / len(correlation)

    def levels(self, hidden: Tensor) -> Tensor:
        """[..., D] → [..., values] integers 0 … levels − 1 as floats; the gradient passes the rounding straight."""
        return _rounded_straight(self._bounded(hidden))

    def _bounded(self, hidden: Tensor) -> Tensor:
        """[..., D] → [..., values] between the lowest level and the highest, a little more at both ends."""
        top = self.num_levels - 1
        return (top + 1e-3) * torch.sigmoid(self.project_in(hidden).float()) - 5e-4

    def codes(self, hidden: Tensor) -> Tensor:
        """See `Quantizer.codes`."""
        return (self.levels(hidden).round().long().clamp(0, self.num_levels - 1) * self.powers).sum(-1)

    def embed_levels(self, levels: Tensor) -> Tensor:
        """[..., values] → [..., D]; levels are centred and scaled to −1 … 1 first."""
        return self.project_out(2 * levels / (self.num_levels - 1) - 1)

    def embed(self, codes: Tensor) -> Tensor:
        """See `Quantizer.embed`."""
        return self.embed_levels((codes[..., None] // self.powers % self.num_levels).float())


def _rounded_straight(values: Tensor) -> Tensor:
    return values + (values.round() - values).detach()


class VectorQuantizer(Quantizer):
    """The nearest vector of a codebook that follows the states by running means (van den Oord et al., 1711.00937).

    The states are projected and scaled to unit variance first, so they cannot shrink to please their vectors. No
    gradient moves the codebook: what the batches of a step put on each code is noted, and `after_step` moves it. So
    the shares of a step, in one process or several, see one codebook.

    The codebook starts empty but for chance: the first steps put nearly all vectors beside the few that are met, over
    and over, until the codes are where the states are.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    updates: Tensor
    new_counts: Tensor
    new_sums: Tensor

    def __init__(self, width: int, config: VqEmaConfig) -> None:
        super().__init__()
        self.config = config
        self.project_in = nn.Linear(width, config.code_size)
        self.project_out = nn.Linear(config.code_size, width)
        shape = (config.num_codes, config.code_size)
        self.register_buffer("codebook", torch.randn(shape))
        self.register_buffer("counts", torch.zeros(config.num_codes))
        self.register_buffer("sums", torch.zeros(shape))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("new_counts", torch.zeros(config.num_codes), persistent=False)
        self.register_buffer("new_sums", torch.zeros(shape), persistent=False)

    def __len__(self) -> int:
        return len(self.codebook)

    def _projected(self, hidden: Tensor) -> Tensor:
        return functional.layer_norm(self.project_in(hidden).float(), (self.config.code_size,))

    def forward(self, hidden: Tensor, valid: Tensor) -> Quantized:
        """See `Quantizer.forward`; in training mode the valid states are noted for `after_step`."""
        states = self._projected(hidden)
        codes = nearest_centroid(states.detach(), self.codebook)
        vectors = self.codebook[codes]
        if self.training:
            self._note(states.detach()[valid], codes[valid])
        distance = (states - vectors)[valid].square().mean()
        straight = states + (vectors - states).detach()
        return Quantized(self.project_out(straight), self.config.commitment * distance)

    def codes(self, hidden: Tensor) -> Tensor:
        """See `Quantizer.codes`."""
        return nearest_centroid(self._projected(hidden), self.codebook)

    def embed(self, codes: Tensor) -> Tensor:
        """See `Quantizer.embed`."""
        return self.project_out(self.codebook[codes])

    def _note(self, states: Tensor, codes: Tensor) -> None:
        self.new_counts += torch.bincount(codes, minlength=len(self)).to(self.new_counts.dtype)
        self.new_sums.index_add_(0, codes, states)

    @torch.no_grad()
    def after_step(self, sum_: Callable[[Sequence[Tensor]], None]) -> None:
        """Move the codebook to what was noted since the last step.

        Args:
            sum_: puts the sum over all processes in place of each tensor.
        """
        sum_([self.new_counts, self.new_sums])
        self.counts.lerp_(self.new_counts, 1 - self.config.decay)
        self.sums.lerp_(self.new_sums, 1 - self.config.decay)
        self._revive()
        met = self.counts > 0
        self.codebook[met] = self.sums[met] / self.counts[met, None]
        self.new_counts.zero_()
        self.new_sums.zero_()
        self.updates += 1

    def _revive(self) -> None:
        """Dead codes share the states of the commonest ones: each of the two takes half, a little apart."""
        dead = (self.counts < self.config.dead_ratio * self.counts.mean()).nonzero()[:, 0]
        dead = dead[: (len(self) - len(dead))]  # each living code is split once
        if not len(dead):
            return
        split = self.counts.topk(len(dead)).indices
        self.counts[split] /= 2
        self.sums[split] /= 2
        self.counts[dead] = self.counts[split]
        generator = torch.Generator().manual_seed(int(self.updates))  # the same on every process and after a resume
        apart = 0.05 * torch.randn(len(dead), self.config.code_size, generator=generator).to(self.sums)
        self.sums[dead] = self.sums[split] + apart * self.counts[split, None]


def build_quantizer(kind: QuantizerKind, width: int, fsq: FsqConfig, vq_ema: VqEmaConfig) -> Quantizer:
    """The quantizer of that kind for states of `width`."""
    return FiniteScalarQuantizer(width, fsq) if kind == "fsq" else VectorQuantizer(width, vq_ema)
