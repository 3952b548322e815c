"""Conditional flow matching with the optimal-transport path: all of its mathematics, no network.

Noise z becomes data x1 along straight lines (Lipman et al., arXiv 2210.02747; CosyVoice, arXiv 2407.05407 §2.3):

    y(t) = (1 − (1 − σ) t) z + t x1        dy/dt = x1 − (1 − σ) z        so  y(t) + (1 − t) dy/dt = x1 + σ z

A network learns the field dy/dt from y(t) and t; sampling follows it from z at t = 0 to t = 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

SIGMA_MIN = 1e-6
GUIDANCE = 0.7

Field = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(y [B, ...], t [B]) → dy/dt, shaped like y."""


def path_point(noise: torch.Tensor, data: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """y(t) for noise and data [B, ...] and t [B] in 0 … 1."""
    t = time.view(-1, *[1] * (data.dim() - 1))
    return (1 - (1 - SIGMA_MIN) * t) * noise + t * data


def path_velocity(noise: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """dy/dt, the training target; the same at every t."""
    return data - (1 - SIGMA_MIN) * noise


def cosine_schedule(uniform: torch.Tensor) -> torch.Tensor:
    """Maps 0 … 1 to 0 … 1, slowly at first: most of the work of a sample lies near the noise."""
    return 1 - torch.cos(uniform * (math.pi / 2))


def gaussian_velocity(y: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """The mean velocity at y(t) if the data were standard normal: `(2 t − 1) / (t² + (1 − t)²) · y`.

    A network that learns what is left over need not carry the noise through all its layers only to subtract it.
    """
    t = time.view(-1, *[1] * (y.dim() - 1))
    return (2 * t - 1) / (t.square() + (1 - t).square()) * y


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, guidance: float) -> torch.Tensor:
    """Classifier-free guidance; 0 is the conditional field itself (arXiv 2207.12598)."""
    return (1 + guidance) * conditional - guidance * unconditional


def euler(field: Field, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Follow `field` from `noise` at t = 0 to t = 1 in `steps` steps of the cosine schedule.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"flow matching needs at least 1 step, not {steps}")
    dtype = torch.promote_types(noise.dtype, torch.float32)
    times = cosine_schedule(torch.linspace(0, 1, steps + 1, dtype=dtype, device=noise.device))
    y = noise
    for start, stop in itertools.pairwise(times):
        y = y + (stop - start) * field(y, start.expand(len(y)))
    return y
