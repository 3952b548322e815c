"""A generator of a few thousand weights, and a second of a hummed vowel for it."""

from __future__ import annotations

import math

import torch

from megatron_aqaa.vocoder.cosyvoice.hift import HiftConfig, HiftGenerator

CONFIG = HiftConfig(base_channels=32, f0_channels=16, kernel_sizes=(3, 7))


def tiny_hift() -> HiftGenerator:
    torch.manual_seed(0)
    return HiftGenerator(CONFIG)


def hum(num_samples: int, f0_hz: float = 150.0) -> torch.Tensor:
    """Twenty falling harmonics, quiet at both ends, with a little noise: [1, N]."""
    time = torch.arange(num_samples, dtype=torch.float64) / CONFIG.mel.sample_rate_hz
    cycles = (f0_hz * time - 2 * torch.cos(2 * math.pi * 4 * time)) * 2 * math.pi
    wave = sum(torch.sin(k * cycles) / k for k in range(1, 21))
    envelope = torch.sin(math.pi * time / time[-1]).square()
    noise = 0.002 * torch.randn(num_samples, generator=torch.Generator().manual_seed(0))
    return (0.2 * wave * envelope + noise).float()[None]
