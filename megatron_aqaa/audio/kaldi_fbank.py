"""Kaldi's log-mel filter bank, which the released linguistic tokenizer (Paraformer) hears."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SAMPLE_RATE_HZ = 16_000
WINDOW_LENGTH = 400  # 25 ms
HOP_LENGTH = 160
_N_FFT = 512
_PRE_EMPHASIS = 0.97
_FULL_SCALE = 32768.0  # Kaldi reads 16-bit integers
_FLOOR = torch.finfo(torch.float32).eps
_LOWEST_HZ = 20.0


def num_frames(num_samples: int) -> int:
    """Frames of so many samples: only whole windows count (Kaldi's `snip_edges`)."""
    return max(0, (num_samples - WINDOW_LENGTH) // HOP_LENGTH + 1)


class KaldiFilterBank(nn.Module):
    """16 kHz waveforms [B, N], full scale 1 → [B, F, M] natural logarithms, F = `num_frames(N)`.

    What Kaldi's `compute-fbank-feats` makes with a Hamming window and no dither, as funasr asks for: the mean of each
    frame is taken off, then pre-emphasis, window, energies of a 512-point transform in 80 bands of unit height that
    are triangles on the mel scale (not in Hz), floored at the smallest float (kaldi-asr/kaldi: `src/feat/`).

    Args:
        num_mels: bands between 20 and 8000 Hz.
    """

    window: Tensor
    bands: Tensor

    def __init__(self, num_mels: int = 80) -> None:
        super().__init__()
        self.register_buffer("window", torch.hamming_window(WINDOW_LENGTH, periodic=False), persistent=False)
        self.register_buffer("bands", _bands(num_mels), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """See the class.

        Raises:
            ValueError: not [B, N], or shorter than one window of 400 samples.
        """
        if waveform.ndim != 2 or waveform.shape[1] < WINDOW_LENGTH:
            raise ValueError(f"expected [B, N] with at least {WINDOW_LENGTH} samples, found {list(waveform.shape)}")
        frames = (waveform * _FULL_SCALE).unfold(1, WINDOW_LENGTH, HOP_LENGTH)
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat((frames[..., :1], frames[..., :-1]), -1)
        spectrum = torch.fft.rfft((frames - _PRE_EMPHASIS * before) * self.window, _N_FFT)
        energy = spectrum.real.square() + spectrum.imag.square()
        return torch.log(torch.clamp(energy @ self.bands.T, min=_FLOOR))


def _bands(num_mels: int) -> Tensor:
    """[M, 257] float32; the bin at 8000 Hz belongs to no band."""
    edges = torch.linspace(_mel(_LOWEST_HZ), _mel(SAMPLE_RATE_HZ / 2), num_mels + 2, dtype=torch.float64)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = torch.tensor([_mel(i * SAMPLE_RATE_HZ / _N_FFT) for i in range(_N_FFT // 2 + 1)], dtype=torch.float64)
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    bands = torch.minimum(rising, falling).clamp(min=0)
    bands[:, -1] = 0
    return bands.float()


def _mel(hz: float) -> float:
    return 1127.0 * math.log(1.0 + hz / 700.0)
