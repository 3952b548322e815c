"""Spectral losses between waveforms `[B, N]`, always in fp32."""

from __future__ import annotations

import torch

RESOLUTIONS = ((256, 64), (512, 128), (1024, 256), (2048, 512))
"""(window, hop) in samples: from the rhythm of stops (16 ms at 16 kHz) to single harmonics (128 ms)."""


def magnitude(waveform: torch.Tensor, window_length: int, hop_length: int) -> torch.Tensor:
    """Magnitudes `[B, F, window_length / 2 + 1]` of Hann-windowed frames that lie wholly inside `waveform [B, N]`."""
    window = torch.hann_window(window_length, device=waveform.device)
    spectrum = torch.fft.rfft(waveform.unfold(-1, window_length, hop_length) * window)
    # the floor (one LSB of 16 bits is 3e-5) keeps the gradient finite where a frame is silent
    return torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-8)


def multi_resolution_stft_loss(generated: torch.Tensor, natural: torch.Tensor) -> torch.Tensor:
    """Spectral convergence plus L1 of log magnitudes, averaged over `RESOLUTIONS` (Parallel WaveGAN, arXiv 1910.11480).

    Args:
        generated: `[B, N]`.
        natural: `[B, N]`, the target; no gradient flows into it.
    """
    terms = []
    for window_length, hop_length in RESOLUTIONS:
        ours = magnitude(generated, window_length, hop_length)
        with torch.no_grad():
            target = magnitude(natural, window_length, hop_length)
        convergence = (ours - target).norm() / target.norm()
        terms.append(convergence + (ours.log() - target.log()).abs().mean())
    return torch.stack(terms).mean()
