"""Judges and their losses: sizes, hand-worked values, and where gradients go."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram
from megatron_aqaa.vocoder.adversarial_losses import (
    deception_loss,
    feature_matching_loss,
    judges_loss,
    mel_loss,
    relativistic_loss,
)
from megatron_aqaa.vocoder.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    Judgement,
    PeriodJudge,
    Resolution,
    SpectrumJudge,
)

TINY = DiscriminatorConfig(
    periods=(2, 3), period_channels=(4, 8), resolutions=(Resolution(64, 16, 32),), spectrum_channels=4
)


def said(*scores: float) -> Judgement:
    values = torch.tensor([scores])
    return Judgement(values, [2 * values, values])


def test_full_size_has_the_published_number_of_parameters() -> None:
    def normed(inputs: int, outputs: int, taps: int) -> int:
        return inputs * outputs * taps + 2 * outputs

    layers = ((1, 32), (32, 128), (128, 512), (512, 1024), (1024, 1024))
    period = sum(normed(i, o, 5) for i, o in layers) + normed(1024, 1, 3)
    spectrum = normed(1, 32, 27) + 3 * normed(32, 32, 27) + normed(32, 32, 9) + normed(32, 1, 9)
    with torch.device("meta"):
        model = Discriminators(DiscriminatorConfig())
    assert sum(p.numel() for p in model.parameters()) == 5 * period + 3 * spectrum == 41_386_672


def test_names_are_the_published_ones() -> None:
    with torch.device("meta"):
        found = {name: tuple(value.shape) for name, value in Discriminators(DiscriminatorConfig()).state_dict().items()}
    weight = "parametrizations.weight.original1"
    expected = {
        f"mpd.discriminators.4.convs.2.{weight}": (512, 128, 5, 1),
        f"mpd.discriminators.0.conv_post.{weight}": (1, 1024, 3, 1),
        f"mrd.discriminators.2.discriminators.1.{weight}": (32, 32, 3, 9),
        "mrd.discriminators.0.out.bias": (1,),
    }
    assert expected.items() <= found.items()


def test_a_period_judge_hears_its_period() -> None:
    """Columns are apart: a change at one place of the period reaches no score of another place."""
    judge, waveform = PeriodJudge(3, (4, 8)), torch.randn(1, 60)
    changed = waveform.clone()
    changed[:, 1::3] += 1
    moved = (judge(changed).scores - judge(waveform).scores)[0].view(-1, 3).abs().amax(dim=0)
    assert moved[1] > 0 and moved[0] == 0 and moved[2] == 0


def test_a_period_judge_mirrors_what_is_missing() -> None:
    judge, waveform = PeriodJudge(3, (4, 8)), torch.randn(2, 61)
    whole = torch.cat((waveform, waveform[:, [59, 58]]), dim=1)
    assert torch.equal(judge(waveform).scores, judge(whole).scores)


def test_a_spectrum_judge_is_deaf_to_the_sign_and_finite_in_silence() -> None:
    judge, waveform = SpectrumJudge(Resolution(64, 16, 32), 4), torch.randn(2, 400)
    torch.testing.assert_close(judge(waveform).scores, judge(-waveform).scores)
    silent = torch.zeros(1, 400, requires_grad=True)
    judge(silent).scores.sum().backward()
    assert torch.isfinite(silent.grad).all()


def test_gradient_reaches_every_parameter_and_the_waveform() -> None:
    judges, waveform = Discriminators(TINY), torch.randn(2, 400, requires_grad=True)
    sum(judgement.scores.square().sum() for judgement in judges(waveform)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in judges.parameters())
    assert waveform.grad.abs().sum() > 0


def test_least_squares_by_hand() -> None:
    natural, generated = [said(1.0, 0.0), said(2.0)], [said(0.0, 0.5), said(-1.0)]
    # (0 + 1) / 2 + (0 + .25) / 2, then 1 + 1
    assert float(judges_loss(natural, generated, "least_squares")) == pytest.approx(2.625)
    assert float(deception_loss(generated, "least_squares")) == pytest.approx((1 + 0.25) / 2 + 4)


def test_hinge_by_hand() -> None:
    natural, generated = [said(1.5, 0.0)], [said(-2.0, 0.5)]
    assert float(judges_loss(natural, generated, "hinge")) == pytest.approx((0 + 1) / 2 + (0 + 1.5) / 2)
    assert float(deception_loss(generated, "hinge")) == pytest.approx(0.75)


def test_feature_matching_by_hand_and_without_gradient_into_the_natural() -> None:
    natural, generated = said(1.0, 3.0), said(2.0, 3.5)
    assert float(feature_matching_loss([natural], [generated])) == pytest.approx((2 + 1) / 2 + (1 + 0.5) / 2)
    leaf = torch.ones(1, 2, requires_grad=True)
    other = torch.zeros(1, 2, requires_grad=True)
    feature_matching_loss([Judgement(leaf, [leaf])], [Judgement(other, [other])]).backward()
    assert leaf.grad is None and other.grad is not None


def test_relativistic_by_hand() -> None:
    # distances 1, 2, 4: median 2; only the first lies below it, by 1
    high, low = [said(1.0, 2.0, 4.0)], [said(0.0, 0.0, 0.0)]
    assert float(relativistic_loss(high, low, truncation=3.0)) == pytest.approx(1.0)
    assert float(relativistic_loss(high, low, truncation=0.04)) == pytest.approx(0.04)
    assert float(relativistic_loss(low, low, truncation=0.04)) == 0  # all alike, and finite


def test_mel_loss_of_twice_the_sound_is_ln_2_a_spectrogram() -> None:
    mels = [MelSpectrogram(MelConfig(n_fft=n_fft, win_length=n_fft)) for n_fft in (640, 1280)]
    natural = torch.randn(2, 4000)
    assert float(mel_loss(mels, natural, natural)) == 0
    assert float(mel_loss(mels, 2 * natural, natural)) == pytest.approx(2 * math.log(2), rel=1e-3)


def test_judges_learn_to_tell_noise_from_a_tone() -> None:
    torch.manual_seed(0)
    judges = Discriminators(TINY)
    optimizer = torch.optim.Adam(judges.parameters(), lr=1e-2)
    tone = torch.sin(torch.arange(400) * 0.3).expand(4, -1)
    history = []
    for _ in range(30):
        loss = judges_loss(judges(tone), judges(torch.randn(4, 400)), "least_squares")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.3 * history[0]


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="one of periods and resolutions"):
        DiscriminatorConfig(periods=(), resolutions=())
    with pytest.raises(ValueError, match="n_fft ≥ win_length ≥ hop_length"):
        DiscriminatorConfig(resolutions=(Resolution(64, 16, 128),))
