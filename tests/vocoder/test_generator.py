"""The generator: exact length, given pitch, and a start that is a vocoder already."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_aqaa.audio.pitch import estimate_pitch
from megatron_aqaa.vocoder.frames import FrameAnalysis, VoiceFrames
from megatron_aqaa.vocoder.generator import Generator, GeneratorConfig
from tests.vocoder.tiny_vocoder import GENERATOR, tiny_generator


def vowel(f0_hz: float, frames: int = 60) -> torch.Tensor:
    """A buzz through two resonances, [1, N]."""
    time_s = torch.arange(frames * 320) / 16000
    partials = torch.arange(1, int(8000 / f0_hz)) * f0_hz
    strength = 1 / (1 + ((partials - 600) / 150) ** 2) + 0.5 / (1 + ((partials - 1800) / 200) ** 2) + 0.003
    waves = strength[:, None] * torch.cos(2 * torch.pi * partials[:, None] * time_s)
    return 0.2 * waves.sum(0)[None] + 1e-3 * torch.randn(1, frames * 320, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frames", [2, 6, 37])
def test_length_is_exact(frames):
    spoken = tiny_generator()(
        VoiceFrames(torch.randn(2, frames, 80) - 4, torch.zeros(2, frames), torch.ones(2, frames))
    )
    assert spoken.shape == (2, frames * 320) and spoken.dtype == torch.float32
    assert torch.isfinite(spoken).all()


def test_untrained_generator_is_a_vocoder():
    """It reproduces the mel spectrum it is told: the output layer is zero, the source-filter start does it."""
    torch.manual_seed(0)
    natural = vowel(180)
    frames = FrameAnalysis()(natural)
    model = Generator(GENERATOR)
    spoken = model(frames)
    error = (model.log_mel(spoken) - model.log_mel(natural)).abs().mean()
    silent_error = (model.log_mel(torch.zeros_like(natural)) - model.log_mel(natural)).abs().mean()
    assert error < 0.5 < silent_error


@pytest.mark.parametrize(("f0_hz", "told_hz"), [(110.0, 104.5), (110.0, 115.5), (180.0, 180.0), (260.0, 260.0)])
def test_pitch_is_the_given_one(f0_hz, told_hz):
    """Mel of a vowel at `f0_hz`, spoken at `told_hz`.

    Above about 150 Hz the mel bands tell harmonics apart, and the untrained start speaks clearly only where both agree.
    """
    torch.manual_seed(0)
    frames = FrameAnalysis()(vowel(f0_hz))
    told = frames._replace(octaves=torch.full_like(frames.octaves, math.log2(told_hz / 150)))
    heard = estimate_pitch(Generator(GENERATOR)(told).detach()).median_hz()
    assert float(heard) == pytest.approx(told_hz, rel=0.01)


def test_same_noise_same_waveform():
    model = tiny_generator()
    frames = VoiceFrames(torch.randn(1, 8, 80) - 4, torch.zeros(1, 8), torch.tensor([[1.0, 1, 0, 0, 0, 1, 1, 1]]))
    noise = torch.randn(1, 8 * 320)
    first, second, other = model(frames, noise), model(frames, noise), model(frames, -noise)
    assert torch.equal(first, second)
    assert not torch.allclose(first, other, atol=1e-3)


def test_every_weight_learns():
    model = tiny_generator().train()
    frames = VoiceFrames(torch.randn(2, 12, 80) - 4, torch.randn(2, 12) / 4, torch.ones(2, 12))
    model(frames).square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_bf16_stays_near_fp32():
    """Only the small network runs in bf16; source, filters and spectra stay in fp32."""
    model = tiny_generator()
    frames, noise = FrameAnalysis()(vowel(150, 30)), torch.randn(1, 30 * 320)
    exact = model(frames, noise)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(frames, noise)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_configuration_is_checked():
    with pytest.raises(ValueError, match="hop_length 150 must divide the mel's 320"):
        GeneratorConfig(hop_length=150)
