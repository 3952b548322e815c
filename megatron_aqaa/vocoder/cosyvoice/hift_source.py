"""Pitch from mel, and the sound that the generator bends: harmonics where the voice is voiced, noise elsewhere.

FunAudioLLM/CosyVoice: `hifigan/f0_predictor.py` and `hifigan/generator.py` (`SourceModuleHnNSF`); arXiv 1904.12088.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

NUM_F0_LAYERS = 5


class F0Predictor(nn.Module):
    """Mel → F0 in Hz, near zero where unvoiced."""

    def __init__(self, num_mels: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(NUM_F0_LAYERS):
            inputs = channels if index else num_mels
            layers += [weight_norm(nn.Conv1d(inputs, channels, 3, padding=1)), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """`mel [B, M, F]` → [B, F]."""
        return self.classifier(self.condnet(mel).transpose(1, 2))[..., 0].abs()


class HarmonicSource(nn.Module):
    """A learned mixture of the fundamental and its overtones.

    Args:
        sample_rate_hz: of the waveform.
        num_harmonics: overtones beside the fundamental.
        sine_amplitude: of each.
        noise_deviation: of the noise beside voiced harmonics; a third of the amplitude where unvoiced.
        voiced_threshold_hz: F0 above this is voiced.
    """

    def __init__(
        self,
        sample_rate_hz: int,
        num_harmonics: int,
        sine_amplitude: float,
        noise_deviation: float,
        voiced_threshold_hz: float,
    ) -> None:
        super().__init__()
        self.sample_rate_hz, self.num_harmonics = sample_rate_hz, num_harmonics
        self.sine_amplitude, self.noise_deviation = sine_amplitude, noise_deviation
        self.voiced_threshold_hz = voiced_threshold_hz
        self.l_linear = nn.Linear(num_harmonics + 1, 1)

    def forward(self, f0_hz: Tensor) -> Tensor:
        """F0 of each sample, [B, N] → waveform [B, N]; overtones begin at random phases."""
        # double precision: after a minute in single precision the ninth harmonic would be off by a fortieth of a cycle
        cycles = torch.cumsum(f0_hz.double() / self.sample_rate_hz, dim=-1)
        shape = (*f0_hz.shape, self.num_harmonics + 1)
        noise = torch.randn(shape, device=f0_hz.device)
        start = torch.rand(len(f0_hz), 1, shape[-1], device=f0_hz.device)
        return self.mixed(cycles, f0_hz > self.voiced_threshold_hz, start, noise)

    def mixed(self, cycles: Tensor, voiced: Tensor, start: Tensor, noise: Tensor) -> Tensor:
        """The source at given phases.

        Args:
            cycles: [B, N] float64, phase of the fundamental.
            voiced: [B, N] bool.
            start: [B, 1, 1 + num_harmonics] cycles by which each harmonic is ahead; the fundamental's is not used.
            noise: [B, N, 1 + num_harmonics] standard normal.

        Returns:
            [B, N].
        """
        with torch.no_grad():
            deviation = torch.where(voiced, self.noise_deviation, self.sine_amplitude / 3)[..., None]
            waves = self.harmonics(cycles, voiced, start) + deviation * noise
        return torch.tanh(self.l_linear(waves))[..., 0]

    @torch.no_grad()
    def harmonics(self, cycles: Tensor, voiced: Tensor, start: Tensor) -> Tensor:
        """[B, N, 1 + num_harmonics]: sines of the fundamental and each overtone, silent where unvoiced; see `mixed`."""
        count = self.num_harmonics + 1
        ahead = torch.cat((torch.zeros_like(start[..., :1]), start[..., 1:]), dim=-1)
        phases = cycles[..., None] * torch.arange(1, count + 1, device=cycles.device) + ahead
        sines = self.sine_amplitude * torch.sin(2 * math.pi * (phases % 1)).float()
        return sines * voiced[..., None]
