from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_aqaa.tokenizer.features import FilterBank, pitch_octaves, prepare_waveform


@pytest.mark.parametrize(("num_samples", "padded"), [(960, 1920), (1920, 1920), (1921, 3840), (20000, 21120)])
def test_preparation_pads_to_whole_groups(num_samples: int, padded: int) -> None:
    waveform = 0.25 * torch.sin(torch.arange(num_samples) / 7)
    prepared = prepare_waveform(waveform)
    assert len(prepared) == padded
    assert torch.equal(prepared[num_samples:], torch.zeros(padded - num_samples))
    assert prepared.abs().max().item() == pytest.approx(0.999, abs=1e-3)


def test_preparation_does_not_blow_up_near_silence() -> None:
    prepared = prepare_waveform(torch.full((1920,), 0.001))
    assert prepared.max().item() == pytest.approx(0.0999)  # 0.001 / 0.01 · 0.999


@pytest.mark.parametrize(
    ("waveform", "problem"),
    [
        (torch.zeros(0), "0 samples"),
        (torch.zeros(959), "at least 960"),
        (torch.zeros(2, 1920), r"shape \[2, 1920\]"),
        (torch.full((1920,), torch.nan), "NaN"),
    ],
)
def test_unusable_waveforms_are_refused(waveform: torch.Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        prepare_waveform(waveform)


def test_twelve_frames_a_group_and_a_tone_in_its_band() -> None:
    time_s = torch.arange(3 * 1920) / 16000
    fbank = FilterBank()(prepare_waveform(torch.sin(2 * np.pi * 1000 * time_s)))
    assert fbank.shape == (36, 80)
    edges_mel = 2595 * np.log10(1 + 8000 / 700) / 81 * np.arange(1, 81)
    nearest = np.abs(700 * (10 ** (edges_mel / 2595) - 1) - 1000).argmin()
    assert (fbank.argmax(1) - nearest).abs().max() <= 1


def test_digital_silence_looks_like_faint_noise() -> None:
    random = torch.Generator().manual_seed(0)
    silence = FilterBank()(torch.zeros(3840))
    noise = FilterBank()(torch.randn(3840, generator=random) / 32768)
    assert torch.equal(silence, noise)


@pytest.mark.parametrize("f0_hz", [80.0, 150.0, 300.0])
def test_pitch_in_octaves(f0_hz: float) -> None:
    time_s = torch.arange(9600) / 16000
    voice = sum(torch.sin(2 * np.pi * f0_hz * k * time_s) / k for k in range(1, 9))
    octaves = pitch_octaves(prepare_waveform(voice))
    assert octaves.shape == (30,)
    assert torch.allclose(octaves[2:-2], torch.tensor(np.log2(f0_hz / 150)).float(), atol=0.01)
    hiss = torch.randn(9600, generator=torch.Generator().manual_seed(0))
    assert pitch_octaves(prepare_waveform(hiss)).isnan().float().mean() > 0.9
