"""Losses of the full-size generator: their sum, whom they move, and that both sides learn."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa.audio.mel import MelSpectrogram
from megatron_aqaa.training.speech_models.hift_steps import hift_adversary
from megatron_aqaa.training.speech_models.speech_batches import SoundAnalysis, SoundBatch
from megatron_aqaa.vocoder.adversarial_losses import AdversarialWeights
from megatron_aqaa.vocoder.cosyvoice.hift import Spoken
from megatron_aqaa.vocoder.discriminators import DiscriminatorConfig, Discriminators, Resolution
from tests.vocoder.cosyvoice.tiny_hift import CONFIG, hum, tiny_hift

JUDGES = DiscriminatorConfig(
    periods=(2,), period_channels=(4, 4), resolutions=(Resolution(512, 50, 240),), spectrum_channels=4
)
WEIGHTS = AdversarialWeights(feature=2.0, mel=45.0, relativistic=0.5, pitch=0.25)


@pytest.fixture
def batch() -> SoundBatch:
    return SoundAnalysis(CONFIG.mel)(hum(5120))


def judges() -> Discriminators:
    torch.manual_seed(2)
    return Discriminators(JUDGES)


def test_the_generators_loss_is_the_weighted_sum(batch: SoundBatch) -> None:
    adversary, model = hift_adversary(WEIGHTS, [MelSpectrogram(CONFIG.mel)]), tiny_hift()
    losses = adversary.convince(judges(), batch, adversary.generate(model, batch))
    parts = losses["deception"] + 2 * losses["feature"] + 45 * losses["mel"]
    torch.testing.assert_close(losses["loss"], parts + 0.5 * losses["relativistic"] + 0.25 * losses["pitch"])
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_judges_loss_moves_the_judges_alone(batch: SoundBatch) -> None:
    adversary, panel = hift_adversary(WEIGHTS, []), judges()
    made = Spoken(torch.randn_like(batch.waveform), batch.f0_hz)
    losses = adversary.judge(panel, batch, made)
    assert losses["loss"] >= losses["judging"]
    losses["loss"].backward()
    assert all(p.grad is not None for p in panel.parameters())
    assert losses["spread"] > 0
    deaf = judges()
    for name, parameter in deaf.named_parameters():
        if name.endswith(("original0", "bias")):
            torch.nn.init.zeros_(parameter)
    assert float(adversary.judge(deaf, batch, made)["spread"]) == 0


def test_perfect_sound_costs_only_deception(batch: SoundBatch) -> None:
    adversary = hift_adversary(WEIGHTS, [MelSpectrogram(CONFIG.mel)])
    losses = adversary.convince(judges(), batch, Spoken(batch.waveform, batch.f0_hz))
    assert {name for name, value in losses.items() if float(value) > 1e-6} == {"loss", "deception"}
