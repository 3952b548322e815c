"""Our networks against the released code: the same weights by name, the same inputs, the same numbers.

The goldens were made by `make_goldens.py` with FunAudioLLM/CosyVoice and shivammehta25/Matcha-TTS.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_aqaa.vocoder.adversarial_losses import relativistic_loss
from megatron_aqaa.vocoder.cosyvoice.conformer import ConformerEncoder
from megatron_aqaa.vocoder.cosyvoice.estimator import Condition, Estimator
from megatron_aqaa.vocoder.cosyvoice.frame_mask import FrameMask
from megatron_aqaa.vocoder.cosyvoice.hift import HiftConfig, HiftGenerator
from megatron_aqaa.vocoder.cosyvoice.length_regulator import LengthRegulator, frame_table
from megatron_aqaa.vocoder.discriminators import Judgement, PeriodJudge, Resolution, SpectrumJudge
from tests.vocoder.cosyvoice.golden_values import fill, quiet, values
from tests.vocoder.cosyvoice.tiny_flow import ENCODER, ESTIMATOR

Goldens = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def goldens() -> Goldens:
    return load_file(Path(__file__).parent / "goldens" / "released.safetensors")


@pytest.fixture
def hift() -> HiftGenerator:
    return quiet(fill(HiftGenerator(HiftConfig(base_channels=32, f0_channels=16))))


def assert_same(found: torch.Tensor, golden: torch.Tensor) -> None:
    torch.testing.assert_close(found, golden, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_encoder(goldens: Goldens) -> None:
    encoder = fill(ConformerEncoder(ENCODER))
    assert_same(encoder(values("tokens", 2, 12, 16), FrameMask(12)), goldens["encoder"])


@torch.no_grad()
def test_length_regulator_at_a_whole_ratio(goldens: Goldens) -> None:
    table = frame_table(FrameMask(6), FrameMask(12), 2.0, torch.device("cpu"))
    found = fill(LengthRegulator(16))(values("hidden", 2, 6, 16), table, FrameMask(12))
    assert_same(found.transpose(1, 2), goldens["regulator"])


@torch.no_grad()
@pytest.mark.parametrize("lengths", [None, torch.tensor([21, 21])], ids=["plain", "masked"])
def test_estimator(goldens: Goldens, lengths: torch.Tensor | None) -> None:
    """At an odd number of frames; the masked way gives the same where nothing is masked."""
    condition = Condition(values("mu", 2, 16, 21), values("speaker", 2, 16), values("prompt", 2, 16, 21))
    found = fill(Estimator(64, 16, ESTIMATOR))(
        values("noisy", 2, 16, 21), values("time", 2).abs(), condition, FrameMask(21, lengths)
    )
    assert_same(found, goldens["estimator"])


@torch.no_grad()
def test_pitch_and_waveform(goldens: Goldens, hift: HiftGenerator) -> None:
    mel, source = values("mel", 1, 80, 9) * 3 - 4, values("source", 1, 1, 9 * 256)
    assert_same(hift.f0_predictor(mel), goldens["f0"])
    assert 0.1 < goldens["decode"].abs().max() < 0.99
    assert_same(hift.decode(mel, source[:, 0]), goldens["decode"])


@torch.no_grad()
def test_judges(goldens: Goldens) -> None:
    waveform = values("waveform", 2, 1301)
    assert_same(fill(PeriodJudge(3, (32, 128, 512, 1024, 1024)))(waveform).scores, goldens["period"])
    assert_same(fill(SpectrumJudge(Resolution(512, 50, 240), 32))(waveform).scores, goldens["spectrum"])


def test_relativistic_loss(goldens: Goldens) -> None:
    high, low = ([Judgement(values(name, 2, 40), [])] for name in ("high", "low"))
    assert_same(relativistic_loss(high, low, 10.0)[None], goldens["relativistic"])
