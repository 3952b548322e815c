from __future__ import annotations

import math

import pytest
import torch

from megatron_aqaa.audio.synthetic import Espeak, record
from megatron_aqaa.data.miniature import ANSWERS, STYLES, spoken_form
from megatron_aqaa.data.speech_script import AssistantSettings
from megatron_aqaa.evaluation.style import Manner, StyleCheck, measure_manner, median_manner

REFERENCE = Manner(duration_s=1.0, f0_hz=200.0)
CHECK = StyleCheck({"it is paris": REFERENCE})


def tone(duration_s: float, f0_hz: float, before_s: float = 0.0, after_s: float = 0.0) -> torch.Tensor:
    time_s = torch.arange(round(duration_s * 16000)) / 16000
    wave = sum(torch.sin(2 * math.pi * k * f0_hz * time_s) / k for k in range(1, 6)) * 0.1
    return torch.cat([torch.zeros(round(before_s * 16000)), wave, torch.zeros(round(after_s * 16000))])


def test_manner_by_hand() -> None:
    manner = measure_manner(tone(0.8, 160.0, before_s=0.2, after_s=0.4))
    assert manner.duration_s == pytest.approx(0.8)
    assert manner.f0_hz == pytest.approx(160.0, rel=0.005)


def test_noise_floor_is_no_speech() -> None:
    waveform = tone(0.8, 160.0, before_s=0.2, after_s=0.4)
    waveform = waveform + 40 / 32768 * torch.randn(len(waveform), generator=torch.Generator().manual_seed(0))
    assert measure_manner(waveform).duration_s == pytest.approx(0.8)


@pytest.mark.parametrize("waveform", [torch.zeros(0), torch.zeros(100), torch.zeros(16000)])
def test_silence_measures_zero_and_follows_nothing(waveform: torch.Tensor) -> None:
    assert measure_manner(waveform) == Manner(0.0, 0.0)
    assert not any(CHECK.follows(waveform, "it is paris", style) for style in STYLES)


@pytest.mark.parametrize(
    ("duration_s", "f0_hz", "styles"),
    [
        (1.0, 200.0, {"neutral"}),
        (1.1, 190.0, {"neutral"}),
        (1.3, 200.0, {"slow"}),
        (0.8, 200.0, {"quick"}),
        (1.0, 250.0, {"high"}),
        (1.0, 150.0, {"low"}),
        (1.3, 150.0, {"slow", "low"}),
        (0.3, 200.0, set()),  # cut off, not quick
        (4.0, 200.0, set()),  # babbling on, not slow
        (1.0, 0.0, set()),  # whispered or broken
    ],
)
def test_decisions(duration_s: float, f0_hz: float, styles: set[str]) -> None:
    manner = Manner(duration_s, f0_hz)
    assert {style for style in STYLES if CHECK.follows_manner(manner, REFERENCE, style)} == styles


def test_references_are_medians_of_the_takes() -> None:
    takes = [measure_manner(tone(duration_s, f0_hz)) for duration_s, f0_hz in ((0.6, 150.0), (0.8, 100.0), (1.6, 90.0))]
    reference = median_manner(takes)
    assert reference.duration_s == pytest.approx(0.8)
    assert reference.f0_hz == pytest.approx(100.0, rel=0.01)


def test_a_reference_without_voice_is_refused() -> None:
    with pytest.raises(ValueError, match="'it is rome' hold no voiced speech"):
        StyleCheck({"it is rome": measure_manner(torch.zeros(16000))})


def test_unknown_answer_and_style() -> None:
    with pytest.raises(ValueError, match="no neutral recording of 'it is rome'"):
        CHECK.follows(tone(1.0, 200.0), "it is rome", "slow")
    with pytest.raises(ValueError, match="unknown style 'loud'"):
        CHECK.follows(tone(1.0, 200.0), "it is paris", "loud")


def test_the_assistant_s_own_recordings_follow_their_style_and_no_other() -> None:
    assistant = AssistantSettings()

    def say(engine: Espeak, text: str, style: str) -> torch.Tensor:
        delivery = getattr(assistant, style)
        raw = engine.speak(spoken_form(text), f"en-us+{assistant.voice}", delivery.rate_wpm + 3, delivery.pitch - 2)
        return torch.from_numpy(record(raw, seed=0).samples).float() / 32768

    answers = ANSWERS[::6]
    with Espeak() as engine:
        check = StyleCheck({answer: measure_manner(say(engine, answer, "neutral")) for answer in answers})
        for answer in answers:
            for style in STYLES:
                waveform = say(engine, answer, style)
                assert [other for other in STYLES if check.follows(waveform, answer, other)] == [style], answer
