"""Log-mel spectrograms in plain PyTorch, framed so that F frames cover exactly F hops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class MelConfig:
    """A mel spectrogram.

    Attributes:
        sample_rate_hz: Of the waveform.
        num_mels: Bands.
        n_fft: Size of the transform.
        win_length: Samples of the (periodic Hann) window, centred in the transform.
        hop_length: Samples from frame to frame; `n_fft - hop_length` is even.
        f_min_hz: Lower edge of the first band.
        f_max_hz: Upper edge of the last band, at most half the rate.
        scale: "slaney" (linear below 1 kHz, logarithmic above, each band of unit area, as librosa) or
            "htk" (2595·log10(1 + f/700), each band of unit height).
        power: 1 sums magnitudes, 2 energies.
        floor: Smallest value before the logarithm.
    """

    sample_rate_hz: int = 16000
    num_mels: int = 80
    n_fft: int = 1280
    win_length: int = 1280
    hop_length: int = 320
    f_min_hz: float = 0.0
    f_max_hz: float = 8000.0
    scale: Literal["slaney", "htk"] = "slaney"
    power: Literal[1, 2] = 1
    floor: float = 1e-5

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that do not fit together."""
        if not 0 <= self.f_min_hz < self.f_max_hz <= self.sample_rate_hz / 2:
            raise ValueError(
                f"mel bands from {self.f_min_hz} to {self.f_max_hz} Hz; they must rise and end at most at"
                f" {self.sample_rate_hz / 2} Hz, half the sample rate"
            )
        if not self.hop_length <= self.win_length <= self.n_fft:
            raise ValueError(
                f"hop_length {self.hop_length}, win_length {self.win_length}, n_fft {self.n_fft} must not decrease"
            )
        if (self.n_fft - self.hop_length) % 2:
            raise ValueError(f"n_fft - hop_length = {self.n_fft - self.hop_length} must be even")

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second."""
        return self.sample_rate_hz / self.hop_length

    @classmethod
    def vocoder(cls) -> MelConfig:
        """What the vocoder speaks from: 50 frames/s, so that one group of audio tokens (120 ms) is 6 frames."""
        return cls()

    @classmethod
    def tokenizer(cls) -> MelConfig:
        """What the tokenizers hear: 100 frames/s, 25 ms windows."""
        return cls(n_fft=512, win_length=400, hop_length=160)


class MelSpectrogram(nn.Module):
    """Waveform [B, N] → log-mel [B, M, F], F = N // hop_length, frame i centred on sample (i + 0.5) · hop_length."""

    window: Tensor
    bands: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        # Derived from the settings, so not part of a checkpoint.
        self.register_buffer("window", torch.hann_window(config.win_length), persistent=False)
        self.register_buffer("bands", mel_bands(config), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Computes the natural logarithm of the mel bands.

        Args:
            waveform: [B, N] float; N > (n_fft - hop_length) / 2, since both ends are continued by reflection.

        Returns:
            [B, M, F].

        Raises:
            ValueError: Not [B, N], or too short.
        """
        margin = self.margin
        if waveform.ndim != 2 or waveform.shape[1] <= margin:
            raise ValueError(f"mel needs [B, N] with more than {margin} samples, found shape {list(waveform.shape)}")
        return self.of_padded(F.pad(waveform, (margin, margin), mode="reflect"))

    @property
    def margin(self) -> int:
        """Samples that the outermost frames hear beyond the ends of a waveform."""
        return (self.config.n_fft - self.config.hop_length) // 2

    def of_padded(self, padded: Tensor) -> Tensor:
        """As `forward`, of [B, N + 2 · margin]: the frames of the middle, whose surroundings are known."""
        config = self.config
        spectrum = torch.stft(
            padded,
            config.n_fft,
            config.hop_length,
            config.win_length,
            self.window,
            center=False,
            return_complex=True,
        )
        return self.of_energy(spectrum.real**2 + spectrum.imag**2)

    def of_energy(self, energy: Tensor) -> Tensor:
        """As `forward`, of energies [B, n_fft // 2 + 1, F]."""
        config = self.config
        # The tiny constant keeps the gradient of the root finite in digital silence.
        magnitude = energy if config.power == 2 else torch.sqrt(energy + 1e-9)
        return torch.log(torch.clamp(self.bands @ magnitude, min=config.floor))


def mel_bands(config: MelConfig) -> Tensor:
    """Triangular bands, [M, n_fft // 2 + 1] float32."""
    to_mel, to_hz = _SCALES[config.scale]
    lowest, highest = to_mel(config.f_min_hz), to_mel(config.f_max_hz)
    step = (highest - lowest) / (config.num_mels + 1)
    edges = [to_hz(lowest + i * step) for i in range(config.num_mels + 2)]
    edges_hz = torch.tensor(edges, dtype=torch.float64)
    lower, centre, upper = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    bins_hz = torch.linspace(0, config.sample_rate_hz / 2, config.n_fft // 2 + 1, dtype=torch.float64)
    rising, falling = (bins_hz - lower) / (centre - lower), (upper - bins_hz) / (upper - centre)
    bands = torch.minimum(rising, falling).clamp(min=0)
    if config.scale == "slaney":
        bands = bands * 2 / (upper - lower)
    return bands.float()


_SLANEY_HZ_PER_MEL = 200 / 3
_SLANEY_LOG_STEP = math.log(6.4) / 27  # 27 mels from 1 kHz to 6.4 kHz


def _slaney_to_mel(hz: float) -> float:
    return hz / _SLANEY_HZ_PER_MEL if hz < 1000 else 15 + math.log(hz / 1000) / _SLANEY_LOG_STEP


def _slaney_to_hz(mel: float) -> float:
    return mel * _SLANEY_HZ_PER_MEL if mel < 15 else 1000 * math.exp((mel - 15) * _SLANEY_LOG_STEP)


def _htk_to_mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _htk_to_hz(mel: float) -> float:
    return 700 * (10 ** (mel / 2595) - 1)


_SCALES = {"slaney": (_slaney_to_mel, _slaney_to_hz), "htk": (_htk_to_mel, _htk_to_hz)}
