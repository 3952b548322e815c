"""Judges of waveforms: by folding them at several periods, and by their spectra at several resolutions.

Names as in FunAudioLLM/CosyVoice: `hifigan/discriminator.py` (`mpd`, `mrd`), sizes as published (HiFi-GAN, arXiv
2010.05646; UnivNet, arXiv 2106.07889).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1


class Resolution(NamedTuple):
    """A short-time Fourier transform, in samples."""

    n_fft: int
    hop_length: int
    win_length: int


RESOLUTIONS = (Resolution(1024, 120, 600), Resolution(2048, 240, 1200), Resolution(512, 50, 240))


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes; the defaults are the published ones.

    Attributes:
        periods: in samples; primes, so that no two see the same.
        period_channels: of each layer of a period's judge; all but the last keep every third frame.
        resolutions: of the spectra.
        spectrum_channels: of each layer of a resolution's judge.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    resolutions: tuple[Resolution, ...] = RESOLUTIONS
    spectrum_channels: int = 32

    def __post_init__(self) -> None:
        if not self.periods and not self.resolutions:
            raise ValueError("discriminators need one of periods and resolutions at least")
        for n_fft, hop_length, win_length in self.resolutions:
            if not hop_length <= win_length <= n_fft:
                raise ValueError(f"resolution ({n_fft}, {hop_length}, {win_length}): n_fft ≥ win_length ≥ hop_length")


class Judgement(NamedTuple):
    """What one judge says of a batch.

    Attributes:
        scores: [B, K], high for what it takes for natural, at K places.
        features: outputs of its layers, scores included.
    """

    scores: Tensor
    features: list[Tensor]


class Discriminators(nn.Module):
    """All judges."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.mpd = Panel(PeriodJudge(period, config.period_channels) for period in config.periods)
        self.mrd = Panel(SpectrumJudge(resolution, config.spectrum_channels) for resolution in config.resolutions)

    def forward(self, waveform: Tensor) -> list[Judgement]:
        """Judge `waveform [B, N]`, one judgement of each period and each resolution."""
        return [*self.mpd(waveform), *self.mrd(waveform)]


class Panel(nn.Module):
    """Judges of one kind."""

    def __init__(self, judges: Iterable[nn.Module]) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(judges)

    def forward(self, waveform: Tensor) -> list[Judgement]:
        """One judgement of each."""
        return [judge(waveform) for judge in self.discriminators]


class PeriodJudge(nn.Module):
    """Hears every p-th sample as a line of its own; convolutions run along the lines."""

    def __init__(self, period: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.period = period
        self.convs = nn.ModuleList()
        for index, (inputs, outputs) in enumerate(zip((1, *channels[:-1]), channels, strict=True)):
            stride = 3 if index < len(channels) - 1 else 1
            self.convs.append(weight_norm(nn.Conv2d(inputs, outputs, (5, 1), (stride, 1), padding=(2, 0))))
        self.conv_post = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> Judgement:
        """[B, N]; what is missing in the last row is mirrored."""
        padded = functional.pad(waveform[:, None], (0, -waveform.shape[1] % self.period), mode="reflect")
        return _judge(padded.unflatten(-1, (-1, self.period)), self.convs, self.conv_post)


class SpectrumJudge(nn.Module):
    """Looks at magnitudes over time and frequency."""

    window: Tensor

    def __init__(self, resolution: Resolution, channels: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.discriminators = nn.ModuleList([weight_norm(nn.Conv2d(1, channels, (3, 9), padding=(1, 4)))])
        for _ in range(3):
            self.discriminators.append(weight_norm(nn.Conv2d(channels, channels, (3, 9), (1, 2), padding=(1, 4))))
        self.discriminators.append(weight_norm(nn.Conv2d(channels, channels, 3, padding=1)))
        self.out = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))
        self.register_buffer("window", torch.hann_window(resolution.win_length), persistent=False)

    def forward(self, waveform: Tensor) -> Judgement:
        """[B, N], N more than half a transform."""
        return _judge(self._magnitude(waveform).transpose(1, 2)[:, None], self.discriminators, self.out)

    def _magnitude(self, waveform: Tensor) -> Tensor:
        """[B, n_fft / 2 + 1, frames], in fp32: spectra in bf16 are noise."""
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(waveform.float(), *self.resolution, self.window, return_complex=True)
            # the floor keeps the gradient of the root finite in digital silence
            return (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()


def _judge(x: Tensor, layers: nn.ModuleList, last: nn.Module) -> Judgement:
    features = []
    for layer in layers:
        x = functional.leaky_relu(layer(x), SLOPE)
        features.append(x)
    scores = last(x)
    return Judgement(scores.flatten(1), [*features, scores])
