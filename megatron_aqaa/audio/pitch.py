"""Fundamental frequency by autocorrelation: simple, batched, good enough for clean speech."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PitchConfig:
    """Where and how F0 is looked for.

    Attributes:
        sample_rate_hz: of the waveform.
        hop_length: samples from frame to frame (320 at 16 kHz = 50 frames a second).
        window_length: samples of a frame; at least three periods of `min_f0_hz` are heard clearly.
        min_f0_hz: lowest F0.
        max_f0_hz: highest F0.
        min_correlation: a frame is voiced from this normalised autocorrelation on.
        min_rms: a frame below this level (full scale 1) is unvoiced.
        octave_tolerance: the shortest lag within this fraction of the best one wins, since every multiple of the
            period correlates as well.
    """

    sample_rate_hz: int = 16000
    hop_length: int = 320
    window_length: int = 1024
    min_f0_hz: float = 60.0
    max_f0_hz: float = 500.0
    min_correlation: float = 0.6
    min_rms: float = 0.005
    octave_tolerance: float = 0.9


@dataclass(frozen=True)
class PitchTrack:
    """F0 of a batch.

    Attributes:
        f0_hz: [B, F] float32, always positive; means nothing where `voiced` is False.
        voiced: [B, F] bool.
    """

    f0_hz: Tensor
    voiced: Tensor

    def median_hz(self) -> Tensor:
        """Median F0 of the voiced frames of each item, [B] float32; 0 where none is voiced."""
        return self.f0_hz.masked_fill(~self.voiced, torch.nan).nanmedian(dim=-1).values.nan_to_num(0.0)


def estimate_pitch(waveform: Tensor, config: PitchConfig | None = None) -> PitchTrack:
    """Estimates F0, one value per hop.

    Args:
        waveform: [B, N] float32.
        config: defaults to speech at 16 kHz.

    Returns:
        F = N // hop_length frames, frame i centred on sample (i + 0.5) * hop_length.

    Raises:
        ValueError: not [B, N], or shorter than one hop.
    """
    config = config or PitchConfig()
    if waveform.ndim != 2 or waveform.shape[1] < config.hop_length:
        raise ValueError(
            f"pitch needs [B, N] with at least {config.hop_length} samples, found shape {list(waveform.shape)}"
        )
    correlation, rms = _autocorrelation(waveform, config)
    shortest = int(config.sample_rate_hz / config.max_f0_hz)
    longest = int(config.sample_rate_hz / config.min_f0_hz) + 1
    period, strength = _best_lag(correlation, shortest, longest, config.octave_tolerance)
    voiced = (strength >= config.min_correlation) & (rms >= config.min_rms)
    return PitchTrack(config.sample_rate_hz / period, voiced)


def _autocorrelation(waveform: Tensor, config: PitchConfig) -> tuple[Tensor, Tensor]:
    """Normalised autocorrelation [B, F, W] of every frame, freed of the window's own, and its RMS level [B, F]."""
    size = config.window_length
    padding = (size - config.hop_length) // 2
    frames = F.pad(waveform, (padding, size - config.hop_length - padding)).unfold(-1, size, config.hop_length)
    window = torch.hann_window(size, device=waveform.device, dtype=waveform.dtype)
    frames = (frames - frames.mean(-1, keepdim=True)) * window
    raw, of_window = _correlate(frames), _correlate(window)
    energy = raw[..., :1]
    # Towards the window's length both correlations vanish; the floor keeps their ratio from exploding there.
    taper = (of_window / of_window[0]).clamp(min=0.05)
    return raw / (energy + 1e-3) / taper, (energy[..., 0] / of_window[0]).clamp(min=0).sqrt()


def _correlate(frames: Tensor) -> Tensor:
    size = frames.shape[-1]
    spectrum = torch.fft.rfft(frames, 2 * size)
    return torch.fft.irfft(spectrum.real**2 + spectrum.imag**2)[..., :size]


def _best_lag(correlation: Tensor, shortest: int, longest: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """The first peak among the lags that comes near the best one, refined between samples, and the best value."""
    left, middle, right = (correlation[..., shortest + step : longest + step] for step in (-1, 0, 1))
    best = middle.amax(-1)
    is_peak = (middle >= left) & (middle >= right) & (middle >= tolerance * best[..., None])
    index = is_peak.float().argmax(-1, keepdim=True)  # the first; 0 if there is none
    before, at, after = (lag.gather(-1, index)[..., 0] for lag in (left, middle, right))
    curvature = before - 2 * at + after
    offset = torch.where(curvature < 0, (before - after) / (2 * curvature).clamp(max=-1e-9), 0.0)
    return shortest + index[..., 0] + offset.clamp(-0.5, 0.5), best
