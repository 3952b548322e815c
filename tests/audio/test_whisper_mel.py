"""Whisper's log-mel spectrogram, against transformers and a value computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_aqaa.audio.mel import MelConfig, mel_bands
from megatron_aqaa.audio.whisper_mel import WhisperMel


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(num_samples, generator=generator) + 0.3 * torch.sin(torch.arange(num_samples) * 0.2)


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("num_samples", [480, 16000, 33333])
def test_equals_whisper(num_mels: int, num_samples: int) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=num_mels)
    waveform = noise(num_samples)
    expected = extractor(waveform.numpy(), sampling_rate=16000, padding=False, return_tensors="np").input_features[0]
    ours = WhisperMel(num_mels)(waveform[None])[0]
    assert ours.shape == (num_mels, num_samples // 160)
    torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=0, atol=1e-4)


def test_a_value_by_hand() -> None:
    waveform, frame, band = noise(1600, seed=2), 4, 9
    window = [0.5 - 0.5 * math.cos(2 * math.pi * i / 400) for i in range(400)]
    samples = [float(x) * w for x, w in zip(waveform[frame * 160 - 200 : frame * 160 + 200], window, strict=True)]
    weights = mel_bands(MelConfig(num_mels=128, n_fft=400, win_length=400, hop_length=160, power=2))[band]
    energy = 0.0
    for k in weights.nonzero().flatten().tolist():
        real = sum(x * math.cos(2 * math.pi * k * i / 400) for i, x in enumerate(samples))
        imaginary = sum(x * math.sin(2 * math.pi * k * i / 400) for i, x in enumerate(samples))
        energy += float(weights[k]) * (real**2 + imaginary**2)
    value = float(WhisperMel()(waveform[None])[0, band, frame])
    assert value == pytest.approx((math.log10(energy) + 4) / 4, abs=1e-5)


def test_nothing_lies_more_than_two_below_the_loudest() -> None:
    mel = WhisperMel()(torch.cat((noise(8000), torch.zeros(8000)))[None])
    assert float(mel.max() - mel.min()) == pytest.approx(2.0, abs=1e-6)


def test_too_short() -> None:
    with pytest.raises(ValueError, match="more than 200 samples, found"):
        WhisperMel()(torch.zeros(1, 200))
