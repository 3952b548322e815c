from __future__ import annotations

import math

import pytest
import torch

from megatron_aqaa.audio.pitch import PitchConfig, PitchTrack, estimate_pitch


def voice(f0_hz: torch.Tensor, harmonics: range = range(1, 9)) -> torch.Tensor:
    """[N] harmonics of an F0 track given per sample, falling off as 1/k."""
    phase = 2 * math.pi * torch.cumsum(f0_hz.double() / 16000, 0)
    return sum(torch.sin(k * phase) / k for k in harmonics).float() * 0.1


@pytest.mark.parametrize("f0_hz", [75.0, 110.0, 135.0, 182.0, 250.0, 333.3, 430.0])
def test_steady_voices(f0_hz: float) -> None:
    track = estimate_pitch(voice(torch.full((16000,), f0_hz))[None])
    inner = slice(3, -3)
    assert track.voiced[0, inner].all()
    torch.testing.assert_close(track.f0_hz[0, inner], torch.full((44,), f0_hz), rtol=0.005, atol=0)


def test_missing_fundamental() -> None:
    track = estimate_pitch(voice(torch.full((16000,), 150.0), harmonics=range(2, 9))[None])
    torch.testing.assert_close(track.median_hz(), torch.tensor([150.0]), rtol=0.005, atol=0)


def test_glide_is_followed_frame_by_frame() -> None:
    glide = torch.linspace(120, 240, 16000)
    track = estimate_pitch(voice(glide)[None])
    centres = glide[160::320]
    torch.testing.assert_close(track.f0_hz[0, 3:-3], centres[3:-3], rtol=0.02, atol=0)


def test_silence_and_noise_are_unvoiced() -> None:
    noise = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    track = estimate_pitch(torch.stack([torch.zeros(16000), noise, 1e-4 * voice(torch.full((16000,), 150.0))]))
    assert not track.voiced.any()
    assert (track.f0_hz > 0).all()
    assert track.median_hz().tolist() == [0.0, 0.0, 0.0]


def test_batch_equals_single_and_frames_are_whole_hops() -> None:
    waveforms = torch.stack([voice(torch.full((5000,), f0_hz)) for f0_hz in (100.0, 200.0)])
    batch = estimate_pitch(waveforms)
    assert batch.f0_hz.shape == batch.voiced.shape == (2, 5000 // 320)
    for i in range(2):
        single = estimate_pitch(waveforms[i : i + 1])
        torch.testing.assert_close(single.f0_hz[0], batch.f0_hz[i])
        assert torch.equal(single.voiced[0], batch.voiced[i])


def test_median_uses_voiced_frames_only() -> None:
    track = PitchTrack(torch.tensor([[100.0, 500.0, 110.0, 120.0]]), torch.tensor([[True, False, True, True]]))
    assert track.median_hz().tolist() == [110.0]


def test_another_rate() -> None:
    wave = voice(torch.full((16000,), 100.0))  # heard at 24 kHz it is a voice of 150 Hz
    track = estimate_pitch(wave[None], PitchConfig(sample_rate_hz=24000, hop_length=480, window_length=1536))
    torch.testing.assert_close(track.median_hz(), torch.tensor([150.0]), rtol=0.005, atol=0)


@pytest.mark.parametrize("shape", [(16000,), (1, 319)])
def test_refuses_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 320 samples"):
        estimate_pitch(torch.zeros(shape))
