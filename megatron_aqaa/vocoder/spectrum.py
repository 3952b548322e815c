"""Short-time Fourier transform and its inverse, framed so that F hops become F frames and back."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class ShortTimeFourier(nn.Module):
    """Hann-windowed transform; `n_fft` is a multiple of `hop_length`, at least twice it."""

    window: torch.Tensor

    def __init__(self, n_fft: int, hop_length: int) -> None:
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        self.margin = (n_fft - hop_length) // 2
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Samples `[B, N]` → complex `[B, F, n_fft / 2 + 1]`, F = N / hop_length, frame i centred on hop i."""
        padded = functional.pad(waveform, (self.margin, self.margin))
        return torch.fft.rfft(padded.unfold(-1, self.n_fft, self.hop_length) * self.window)

    def inverse(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Complex `[B, F, n_fft / 2 + 1]` → samples `[B, F · hop_length]`; undoes `forward` exactly."""
        frames = torch.fft.irfft(spectrum, self.n_fft) * self.window
        weight = self.window.square().expand(1, frames.shape[1], -1)
        waveform = self._overlap_add(frames) / self._overlap_add(weight).clamp(min=1e-8)
        return waveform[:, self.margin : waveform.shape[1] - self.margin]

    def _overlap_add(self, frames: torch.Tensor) -> torch.Tensor:
        """[B, F, n_fft] → [B, (F − 1) · hop_length + n_fft]; in a few large additions."""
        pieces = self.n_fft // self.hop_length
        parts = frames.unflatten(-1, (pieces, self.hop_length))
        shifted = [functional.pad(parts[:, :, i], (0, 0, i, pieces - 1 - i)) for i in range(pieces)]
        return torch.stack(shifted).sum(dim=0).flatten(1)
