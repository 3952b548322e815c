"""Waveform generator: a source-filter vocoder whose filters a small network corrects, through one inverse STFT.

Before the first training step it is a classical channel vocoder: pulses at the given pitch (noise where unvoiced),
filtered so that their mel spectrum becomes the wanted one. The network adds to the log magnitudes of both filters
and to the phase of the pulses. That start is worth more than the training: log-mel L1 .39 at step 0, where the same
network without it stands at .80 after a minute (gemelo-ai/vocos for the network and the inverse STFT head,
arXiv 2001.04643 for harmonics plus noise). Pitch comes from outside: a waveform network's own collapses on high voices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram, mel_bands
from megatron_aqaa.vocoder.excitation import START, PhaseAnchor, pulse_train
from megatron_aqaa.vocoder.frames import VoiceFrames
from megatron_aqaa.vocoder.layers import ConvNeXtBlock
from megatron_aqaa.vocoder.spectrum import ShortTimeFourier


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of the generator.

    Attributes:
        hidden_size: channels of the network, at the frame rate of the mel.
        inner_size: width inside a block.
        num_blocks: ConvNeXt blocks.
        kernel_size: frames that a block sees.
        n_fft: window of the filters in samples; half the mel's, since the pulses bring the harmonics with them
            and a short window keeps stops sharp.
        hop_length: samples from filter to filter; divides the mel's.
        mel: what it speaks from.
    """

    hidden_size: int = 256
    inner_size: int = 768
    num_blocks: int = 6
    kernel_size: int = 7
    n_fft: int = 640
    hop_length: int = 160
    mel: MelConfig = field(default_factory=MelConfig.vocoder)

    def __post_init__(self) -> None:
        if self.mel.hop_length % self.hop_length or self.n_fft % self.hop_length:
            raise ValueError(
                f"generator: hop_length {self.hop_length} must divide the mel's {self.mel.hop_length} and its own "
                f"n_fft {self.n_fft}"
            )

    @property
    def filters_per_frame(self) -> int:
        """Filters of one mel frame."""
        return self.mel.hop_length // self.hop_length

    @property
    def num_bins(self) -> int:
        """Frequencies of a filter."""
        return self.n_fft // 2 + 1


class Source(NamedTuple):
    """What is filtered, and by how much to begin with; F' = F · filters_per_frame.

    Attributes:
        pulses: [B, F', bins] complex spectrum.
        noise: [B, F', bins] complex spectrum.
        pulse_gain: [B, F', bins] log magnitude of the untrained filter of the pulses.
        noise_gain: [B, F', bins] the same of the noise.
    """

    pulses: torch.Tensor
    noise: torch.Tensor
    pulse_gain: torch.Tensor
    noise_gain: torch.Tensor


NOISE_IN_VOICED = -4.0  # log gain of the noise beside the pulses before training
MAX_LOG_GAIN = 8.0


class Generator(nn.Module):
    """`VoiceFrames` → waveform; F frames become exactly F · hop_length samples."""

    band_to_bin: torch.Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.input = nn.Conv1d(config.mel.num_mels + 2, size, 7, padding=3)
        self.input_norm = nn.LayerNorm(size)
        blocks = (
            ConvNeXtBlock(size, config.inner_size, config.kernel_size, scale=1 / config.num_blocks)
            for _ in range(config.num_blocks)
        )
        self.blocks = nn.ModuleList(blocks)
        self.output_norm = nn.LayerNorm(size)
        self.output = nn.Linear(size, config.filters_per_frame * 3 * config.num_bins)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.log_mel = MelSpectrogram(config.mel)
        self.fourier = ShortTimeFourier(config.n_fft, config.hop_length)
        self.register_buffer("band_to_bin", _band_to_bin(config), persistent=False)

    def forward(
        self, frames: VoiceFrames, noise: torch.Tensor | None = None, anchor: PhaseAnchor = START
    ) -> torch.Tensor:
        """Speak.

        Args:
            frames: F frames.
            noise: [B, N] standard normal samples for the breath of the voice; drawn if not given.
            anchor: phase of the pulses.

        Returns:
            [B, N] float32, N = F · hop_length of the mel.
        """
        corrections = self._network(frames).float()
        with torch.autocast(frames.mel.device.type, enabled=False):
            source = self._source(frames, noise, anchor)
            pulse_gain, phase, noise_gain = corrections.unbind(dim=2)
            pulse_filter = torch.polar(_gain(source.pulse_gain + pulse_gain), phase)
            spectrum = source.pulses * pulse_filter + source.noise * _gain(source.noise_gain + noise_gain)
            return self.fourier.inverse(spectrum)

    def _network(self, frames: VoiceFrames) -> torch.Tensor:
        """Corrections of the filters: [B, F', 3, bins]."""
        config = self.config
        pitch = torch.stack((frames.octaves * frames.voiced, frames.voiced), dim=-1)
        features = torch.cat(((frames.mel + 4) / 2, pitch), dim=-1)  # log-mel of speech lies about −4 ± 2
        x = self.input_norm(self.input(features.transpose(1, 2)).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        filters = self.output(self.output_norm(x))
        return filters.unflatten(-1, (config.filters_per_frame, 3, config.num_bins)).flatten(1, 2)

    @torch.no_grad()
    def _source(self, frames: VoiceFrames, noise: torch.Tensor | None, anchor: PhaseAnchor) -> Source:
        config = self.config
        mel = config.mel
        pulses = pulse_train(frames.octaves, frames.voiced, mel.hop_length, mel.sample_rate_hz, anchor)
        noise = torch.randn_like(pulses.waveform) if noise is None else noise
        mixed = pulses.waveform + (1 - pulses.voicing) * noise
        gain = self._per_filter((frames.mel - self.log_mel(mixed).transpose(1, 2)) @ self.band_to_bin)
        voiced = self._per_filter(frames.voiced[..., None])
        return Source(self.fourier(pulses.waveform), self.fourier(noise), gain, gain + NOISE_IN_VOICED * voiced)

    def _per_filter(self, values: torch.Tensor) -> torch.Tensor:
        """[B, F, C] at the mel's frame centres → [B, F', C] at the filters'."""
        ratio = float(self.config.filters_per_frame)
        return functional.interpolate(values.transpose(1, 2), scale_factor=ratio, mode="linear").transpose(1, 2)


def _gain(log_magnitude: torch.Tensor) -> torch.Tensor:
    return torch.exp(log_magnitude.clamp(max=MAX_LOG_GAIN))


def _band_to_bin(config: GeneratorConfig) -> torch.Tensor:
    """[M, bins]: spreads a value per mel band over the bins, each bin a weighted mean of the bands around it."""
    mel = config.mel
    centres_hz = _band_centres_hz(mel)
    bins_hz = torch.linspace(0, mel.sample_rate_hz / 2, config.num_bins)
    upper = torch.searchsorted(centres_hz, bins_hz).clamp(1, mel.num_mels - 1)
    low_hz, high_hz = centres_hz[upper - 1], centres_hz[upper]
    share = ((bins_hz - low_hz) / (high_hz - low_hz)).clamp(0, 1)
    weights = torch.zeros(mel.num_mels, config.num_bins)
    columns = torch.arange(config.num_bins)
    weights[upper - 1, columns] = 1 - share
    weights[upper, columns] = share
    return weights


def _band_centres_hz(mel: MelConfig) -> torch.Tensor:
    bands = mel_bands(mel)
    bins_hz = torch.linspace(0, mel.sample_rate_hz / 2, bands.shape[1])
    return (bands @ bins_hz) / bands.sum(dim=1)
