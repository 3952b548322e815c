"""The inverse transform undoes the transform, also at the ends."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa.vocoder.spectrum import ShortTimeFourier


@pytest.mark.parametrize(("n_fft", "hop_length"), [(640, 160), (1280, 320), (64, 32)])
@pytest.mark.parametrize("frames", [1, 5])
def test_inverse_undoes_forward(n_fft, hop_length, frames):
    fourier = ShortTimeFourier(n_fft, hop_length)
    waveform = torch.randn(2, frames * hop_length)
    spectrum = fourier(waveform)
    assert spectrum.shape == (2, frames, n_fft // 2 + 1)
    torch.testing.assert_close(fourier.inverse(spectrum), waveform, rtol=0, atol=1e-4)


def test_overlap_add_against_a_loop():
    fourier = ShortTimeFourier(16, 4)
    frames = torch.randn(1, 6, 16)
    naive = torch.zeros(1, 5 * 4 + 16)
    for i in range(6):
        naive[:, 4 * i : 4 * i + 16] += frames[:, i]
    torch.testing.assert_close(fourier._overlap_add(frames), naive)
