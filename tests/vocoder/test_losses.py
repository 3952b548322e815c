"""Spectral losses on cases that can be worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from megatron_aqaa.vocoder.losses import magnitude, multi_resolution_stft_loss


def test_magnitude_against_a_loop():
    waveform = torch.randn(2, 700)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    naive = [
        [np.abs(np.fft.rfft(row[i : i + 256] * window)) for i in range(0, 700 - 256 + 1, 64)]
        for row in waveform.numpy()
    ]
    torch.testing.assert_close(
        magnitude(waveform, 256, 64), torch.tensor(np.array(naive)).float(), rtol=1e-4, atol=2e-4
    )


def test_zero_for_the_same_waveform_and_known_for_twice_it():
    natural = torch.randn(2, 4096)
    assert multi_resolution_stft_loss(natural, natural) == 0
    # spectral convergence |2 − 1| = 1, log distance ln 2, at every resolution
    assert float(multi_resolution_stft_loss(2 * natural, natural)) == pytest.approx(1 + math.log(2), rel=1e-4)


def test_ignores_the_sign_and_is_finite_in_silence():
    natural = torch.randn(1, 4096)
    assert float(multi_resolution_stft_loss(-natural, natural)) == pytest.approx(0, abs=1e-6)
    silent = torch.zeros(1, 4096, requires_grad=True)
    multi_resolution_stft_loss(silent, natural).backward()
    assert torch.isfinite(silent.grad).all()
