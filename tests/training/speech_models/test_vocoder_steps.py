"""Losses of the vocoder: what they see, what they ignore, and that they fall."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa.training.speech_models.vocoder_steps import acoustic_losses, generator_losses, mel_l1
from megatron_aqaa.training.speech_models.voice_corpus import VoiceBatch
from megatron_aqaa.vocoder.frames import FrameAnalysis
from megatron_aqaa.vocoder.generator import Generator
from tests.tokenizer.tiny import speech
from tests.vocoder.tiny_vocoder import GENERATOR, random_codes, tiny_acoustic, tiny_generator


@pytest.fixture
def batch() -> VoiceBatch:
    waveform = torch.stack([torch.from_numpy(speech(seed, 4)[0]) for seed in range(3)])
    return VoiceBatch(waveform, FrameAnalysis()(waveform), random_codes(3, 4))


def train(model: torch.nn.Module, losses, batch: VoiceBatch, steps: int) -> list[dict[str, float]]:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(steps):
        values = losses(model, batch)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in values.items()})
    return history


def test_generator_improves_on_its_start(batch: VoiceBatch) -> None:
    history = train(Generator(GENERATOR), generator_losses, batch, 25)
    assert history[-1]["stft"] < 0.9 * history[0]["stft"]
    assert history[-1]["mel"] < history[0]["mel"]
    assert history[0]["loss"] == pytest.approx(3 * history[0]["mel"] + history[0]["stft"], rel=1e-5)


def test_acoustic_model_improves(batch: VoiceBatch) -> None:
    history = train(tiny_acoustic().train(), acoustic_losses, batch, 40)
    for name in ("mel", "pitch", "voicing"):
        assert history[-1][name] < 0.9 * history[0][name], name


def test_spectral_losses_stay_in_fp32_under_autocast(batch: VoiceBatch) -> None:
    model = tiny_generator()
    torch.manual_seed(0)
    exact = generator_losses(model, batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = generator_losses(model, batch)
    assert all(value.dtype == torch.float32 for value in rounded.values())
    assert float(rounded["loss"].detach()) == pytest.approx(float(exact["loss"].detach()), rel=0.01)


def test_pitch_of_unvoiced_frames_is_not_learned(batch: VoiceBatch) -> None:
    model = tiny_acoustic()
    nonsense = torch.where(batch.frames.voiced.bool(), batch.frames.octaves, torch.full_like(batch.frames.octaves, 9.0))
    torch.manual_seed(0)
    honest = acoustic_losses(model, batch)["pitch"]
    torch.manual_seed(0)
    assert torch.equal(
        acoustic_losses(model, batch._replace(frames=batch.frames._replace(octaves=nonsense)))["pitch"], honest
    )


def test_flow_does_not_pull_at_the_mean(batch: VoiceBatch) -> None:
    """The residual is taken from the mean as it is: the flow's loss moves no weight of the regression's output."""
    model = tiny_acoustic()
    acoustic_losses(model, batch)["flow"].backward()
    assert model.regression.weight.grad is None
    assert model.embedding.semantic.weight.grad.abs().sum() > 0


def test_mel_l1_is_zero_for_itself(batch: VoiceBatch) -> None:
    log_mel = tiny_generator().log_mel
    assert mel_l1(log_mel, batch.waveform, batch.waveform) == 0
    assert float(mel_l1(log_mel, 2 * batch.waveform, batch.waveform)) == pytest.approx(0.693, abs=0.01)  # ln 2
