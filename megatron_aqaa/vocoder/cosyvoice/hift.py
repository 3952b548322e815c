"""Mel → waveform: a neural source filter whose last step is an inverse STFT (HiFTNet, arXiv 2309.09493).

Names and rules as released (FunAudioLLM/CosyVoice: `hifigan/generator.py`, `HiFTGenerator`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from megatron_aqaa.audio.mel import MelConfig
from megatron_aqaa.vocoder.cosyvoice.flow_model import WIDE_MEL
from megatron_aqaa.vocoder.cosyvoice.hift_layers import ResBlock
from megatron_aqaa.vocoder.cosyvoice.hift_source import F0Predictor, HarmonicSource

DILATIONS = (1, 3, 5)
MAX_LOG_MAGNITUDE = math.log(100.0)


@dataclass(frozen=True)
class HiftConfig:
    """Sizes; the defaults are the released ones at 22.05 kHz.

    At 24 kHz (hop 480) the released rates are 8, 5, 3 with kernels 16, 11, 7 and source kernels 7, 7, 11.

    Attributes:
        mel: what it speaks from; its hop is the product of `upsample_rates` and `hop_length`.
        base_channels: before the first upsampling; each one halves them.
        num_harmonics: overtones of the source.
        sine_amplitude: of the source.
        noise_deviation: of the source's noise where voiced.
        voiced_threshold_hz: F0 above this is voiced.
        upsample_rates: of each stage.
        upsample_kernel_sizes: of each stage.
        source_kernel_sizes: of the block that the source goes through into each stage.
        kernel_sizes: of the blocks of a stage, which are averaged.
        n_fft: of the inverse STFT.
        hop_length: of the inverse STFT.
        f0_channels: of the pitch network.
        leaky_slope: of the activation before each upsampling.
        audio_limit: the waveform is cut off there.
    """

    mel: MelConfig = field(default_factory=lambda: WIDE_MEL)
    base_channels: int = 512
    num_harmonics: int = 8
    sine_amplitude: float = 0.1
    noise_deviation: float = 0.003
    voiced_threshold_hz: float = 10.0
    upsample_rates: tuple[int, ...] = (8, 8)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16)
    source_kernel_sizes: tuple[int, ...] = (7, 11)
    kernel_sizes: tuple[int, ...] = (3, 7, 11)
    n_fft: int = 16
    hop_length: int = 4
    f0_channels: int = 512
    leaky_slope: float = 0.1
    audio_limit: float = 0.99

    def __post_init__(self) -> None:
        per_frame = math.prod(self.upsample_rates) * self.hop_length
        if per_frame != self.mel.hop_length:
            raise ValueError(
                f"upsample_rates {self.upsample_rates} times hop_length {self.hop_length} make {per_frame} samples of "
                f"a frame, the mel's hop_length is {self.mel.hop_length}"
            )
        stages = len(self.upsample_rates)
        if {len(self.upsample_kernel_sizes), len(self.source_kernel_sizes)} != {stages}:
            raise ValueError(f"{stages} upsample_rates need as many upsample_kernel_sizes and source_kernel_sizes")
        if self.base_channels % (1 << stages):
            raise ValueError(f"base_channels = {self.base_channels} cannot be halved {stages} times")

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels after each upsampling."""
        return tuple(self.base_channels >> (stage + 1) for stage in range(len(self.upsample_rates)))


class Spoken(NamedTuple):
    """What the generator makes of F frames.

    Attributes:
        waveform: [B, F · hop_length of the mel].
        f0_hz: [B, F] the pitch that it took the mel to have.
    """

    waveform: Tensor
    f0_hz: Tensor


class HiftGenerator(nn.Module):
    """See the module's docstring."""

    window: Tensor

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config = config
        self.m_source = HarmonicSource(
            config.mel.sample_rate_hz,
            config.num_harmonics,
            config.sine_amplitude,
            config.noise_deviation,
            config.voiced_threshold_hz,
        )
        parts = config.n_fft + 2  # real and imaginary, or logarithm and phase
        self.conv_pre = weight_norm(nn.Conv1d(config.mel.num_mels, config.base_channels, 7, padding=3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        self.source_downs, self.source_resblocks = nn.ModuleList(), nn.ModuleList()
        for stage, channels in enumerate(config.stage_channels):
            rate, kernel = config.upsample_rates[stage], config.upsample_kernel_sizes[stage]
            up = nn.ConvTranspose1d(2 * channels, channels, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(weight_norm(up))
            self.source_downs.append(_to_rate(parts, channels, math.prod(config.upsample_rates[stage + 1 :])))
            self.source_resblocks.append(ResBlock(channels, config.source_kernel_sizes[stage], DILATIONS))
            self.resblocks.extend(ResBlock(channels, size, DILATIONS) for size in config.kernel_sizes)
        self.conv_post = weight_norm(nn.Conv1d(config.stage_channels[-1], parts, 7, padding=3))
        self.f0_predictor = F0Predictor(config.mel.num_mels, config.f0_channels)
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)

    def forward(self, mel: Tensor) -> Spoken:
        """Speak `mel [B, F, M]` (natural logarithm)."""
        frames = mel.transpose(1, 2)
        f0_hz = self.f0_predictor(frames).float()
        with torch.autocast(mel.device.type, enabled=False):
            source = self.m_source(f0_hz.repeat_interleave(self.config.mel.hop_length, dim=1))
        return Spoken(self.decode(frames, source), f0_hz)

    def decode(self, frames: Tensor, source: Tensor) -> Tensor:
        """`frames [B, M, F]` and a source [B, N] → waveform [B, N]."""
        spectrum = self._spectrum(source)
        x = self.conv_pre(frames)
        last = len(self.ups) - 1
        for stage, up in enumerate(self.ups):
            x = up(functional.leaky_relu(x, self.config.leaky_slope))
            if stage == last:
                x = functional.pad(x, (1, 0), mode="reflect")  # a centred STFT has a frame more than hops
            x = x + self.source_resblocks[stage](self.source_downs[stage](spectrum))
            x = self._averaged_blocks(stage, x)
        # this slope is torch's own .01, not `leaky_slope`: released weights were trained with it
        return self._waveform(self.conv_post(functional.leaky_relu(x)).float())

    def _averaged_blocks(self, stage: int, x: Tensor) -> Tensor:
        count = len(self.config.kernel_sizes)
        blocks = list(self.resblocks)[stage * count : (stage + 1) * count]
        return torch.stack([block(x) for block in blocks]).sum(dim=0) / count

    def _spectrum(self, source: Tensor) -> Tensor:
        """[B, N] → real, then imaginary parts, [B, n_fft + 2, N / hop + 1]."""
        with torch.autocast(source.device.type, enabled=False):
            found = torch.stft(
                source.float(), self.config.n_fft, self.config.hop_length, window=self.window, return_complex=True
            )
            return torch.cat((found.real, found.imag), dim=1)

    def _waveform(self, parts: Tensor) -> Tensor:
        """Log magnitudes, then what the phase is the sine of, [B, n_fft + 2, N / hop + 1] → [B, N]."""
        with torch.autocast(parts.device.type, enabled=False):
            log_magnitude, phase = parts.split(self.config.n_fft // 2 + 1, dim=1)
            spectrum = torch.polar(log_magnitude.clamp(max=MAX_LOG_MAGNITUDE).exp(), torch.sin(phase))
            waveform = torch.istft(spectrum, self.config.n_fft, self.config.hop_length, window=self.window)
            return waveform.clamp(-self.config.audio_limit, self.config.audio_limit)


def _to_rate(parts: int, channels: int, stride: int) -> nn.Conv1d:
    """Brings the source's spectrum to the rate of a stage."""
    if stride == 1:
        return nn.Conv1d(parts, channels, 1)
    return nn.Conv1d(parts, channels, 2 * stride, stride, padding=stride // 2)
