"""The raw sound that the generator filters: pulses at the given pitch where the voice is voiced."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional

from megatron_aqaa.vocoder.frames import PITCH_REFERENCE_HZ


class PhaseAnchor(NamedTuple):
    """Ties the pulses of one stretch to those of another: a stream's chunks share one pulse train.

    Attributes:
        frame: the sample at the start of this frame …
        cycles: … has this phase, in cycles.
    """

    frame: int = 0
    cycles: float = 0.0


START = PhaseAnchor()


class Pulses(NamedTuple):
    """A pulse train.

    Attributes:
        waveform: [B, N], unit power where voiced, silent where not.
        voicing: [B, N], 0 … 1, the envelope of `waveform`.
    """

    waveform: torch.Tensor
    voicing: torch.Tensor


@torch.no_grad()
def pulse_phase(
    octaves: torch.Tensor, hop_length: int, sample_rate_hz: int, anchor: PhaseAnchor = START
) -> torch.Tensor:
    """Phase in cycles before each sample and after the last, [B, N + 1] float64.

    Args:
        octaves: [B, F] log2 of F0 over `PITCH_REFERENCE_HZ`.
        hop_length: samples of a frame; N = F · hop_length.
        sample_rate_hz: of the result.
        anchor: where the phase is given.
    """
    # double precision: after a minute in single precision the 40th harmonic would be off by a tenth of a cycle
    step = _f0_hz(octaves, hop_length).double() / sample_rate_hz
    cycles = functional.pad(torch.cumsum(step, dim=-1), (1, 0))
    return cycles - cycles[:, anchor.frame * hop_length, None] + anchor.cycles


@torch.no_grad()
def pulse_train(
    octaves: torch.Tensor,
    voiced: torch.Tensor,
    hop_length: int,
    sample_rate_hz: int,
    anchor: PhaseAnchor = START,
) -> Pulses:
    """All harmonics below half the sample rate in phase and of equal strength: `Σ cos(2π k φ)`, in closed form.

    Args:
        octaves: as in `pulse_phase`.
        voiced: [B, F] 0 … 1.
        hop_length: as in `pulse_phase`.
        sample_rate_hz: as in `pulse_phase`.
        anchor: as in `pulse_phase`.
    """
    cycles = pulse_phase(octaves, hop_length, sample_rate_hz, anchor)[:, :-1]
    phase = (2 * math.pi * (cycles % 1.0)).float()
    harmonics = torch.floor(sample_rate_hz / 2 / _f0_hz(octaves, hop_length))
    voicing = _per_sample(voiced, hop_length)
    return Pulses(_cosine_sum(phase, harmonics) / torch.sqrt(harmonics / 2) * voicing, voicing)


def _f0_hz(octaves: torch.Tensor, hop_length: int) -> torch.Tensor:
    return PITCH_REFERENCE_HZ * 2 ** _per_sample(octaves, hop_length)


def _per_sample(values: torch.Tensor, hop_length: int) -> torch.Tensor:
    """[B, F] at frame centres → [B, F · hop_length], linear in between."""
    return functional.interpolate(values[:, None], scale_factor=float(hop_length), mode="linear")[:, 0]


def _cosine_sum(phase: torch.Tensor, harmonics: torch.Tensor) -> torch.Tensor:
    """`Σ_{k=1…K} cos(k · phase)`, the Dirichlet kernel without its constant."""
    half = torch.sin(phase / 2)
    at_pulse = half.abs() < 1e-4  # the limit is K
    ratio = torch.sin((harmonics + 0.5) * phase) / torch.where(at_pulse, 1.0, half)
    return torch.where(at_pulse, harmonics, (ratio - 1) / 2)
