"""Log-mel → waveform without a network (Griffin and Lim 1984): a mel can be listened to before there is a generator."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_aqaa.audio.mel import MelConfig, mel_bands
from megatron_aqaa.vocoder.spectrum import ShortTimeFourier


def griffin_lim(log_mel: Tensor, config: MelConfig, iterations: int = 32, seed: int = 0) -> Tensor:
    """Magnitudes by the bands' pseudo-inverse, phases by iteration.

    Args:
        log_mel: [F, M] natural logarithm; any device.
        config: of the mel; its `n_fft` is a multiple of its `hop_length`.
        iterations: of the phases.
        seed: of the phases at the start.

    Returns:
        [N] float32 on the CPU, N = F · hop_length.
    """
    transform = ShortTimeFourier(config.n_fft, config.hop_length)
    energy = log_mel.cpu().float().exp() @ torch.linalg.pinv(mel_bands(config)).T
    magnitude = energy.clamp(min=0)[None] ** (1 / config.power)
    source = torch.Generator().manual_seed(seed)
    phase = 2 * torch.pi * torch.rand(magnitude.shape, generator=source)
    for _ in range(iterations):
        phase = transform(transform.inverse(torch.polar(magnitude, phase))).angle()
    return transform.inverse(torch.polar(magnitude, phase))[0]
