from __future__ import annotations

import sys
from random import Random

import pytest
import torch

from megatron_aqaa.audio.synthetic import Espeak, record
from megatron_aqaa.data.miniature import ANSWERS, STYLES, spoken_form
from megatron_aqaa.data.speech_script import AssistantSettings
from megatron_aqaa.evaluation.judge import SpokenAnswerJudge

ASSISTANT = AssistantSettings()


@pytest.fixture(scope="module")
def judge() -> SpokenAnswerJudge:
    return SpokenAnswerJudge(ANSWERS)


def say(engine: Espeak, text: str, style: str = "neutral", noise_lsb: float = 10.0) -> torch.Tensor:
    delivery = getattr(ASSISTANT, style)
    raw = engine.speak(spoken_form(text), f"en-us+{ASSISTANT.voice}", delivery.rate_wpm, delivery.pitch)
    return torch.from_numpy(record(raw, seed=0, noise_lsb=noise_lsb).samples).float() / 32768


def test_hears_the_assistant_in_all_styles(judge: SpokenAnswerJudge) -> None:
    """A sample of 30; over all 410 validation recordings it hears .99 (see `AssistantSettings`)."""
    answers = Random(0).sample(ANSWERS, 6)
    with Espeak() as engine:
        heard = [judge.recognise(say(engine, answer, style)) == answer for style in STYLES for answer in answers]
    assert sum(heard) >= 29


def test_hears_the_wrong_answer_as_wrong(judge: SpokenAnswerJudge) -> None:
    with Espeak() as engine:
        assert judge.recognise(say(engine, "it is paris")) == "it is paris"
        assert judge.recognise(say(engine, "it is rome")) == "it is rome"


def test_level_and_digital_silence_do_not_matter(judge: SpokenAnswerJudge) -> None:
    with Espeak() as engine:
        waveform = say(engine, "you get seven", noise_lsb=0.0)
    silence = torch.zeros(8000)
    for variant in (waveform, 0.05 * waveform, torch.cat([silence, waveform, silence])):
        assert judge.recognise(variant) == "you get seven"


def test_what_was_heard_before_does_not_matter(judge: SpokenAnswerJudge) -> None:
    with Espeak() as engine:
        waveforms = [say(engine, answer, "quick") for answer in ANSWERS[:6]]
    forwards = [judge.recognise(waveform) for waveform in waveforms]
    backwards = [judge.recognise(waveform) for waveform in reversed(waveforms)]
    scores = []
    for before in (waveforms[1], 0.05 * waveforms[2], torch.zeros(16000)):
        judge.recognise(before)
        judge.recognise(waveforms[0])
        scores.append(judge._decoder.hyp().best_score)
    assert forwards == backwards[::-1]
    assert len(set(scores)) == 1


@pytest.mark.parametrize("num_samples", [1, 100, 16000])
def test_hears_nothing_in_silence_and_noise(judge: SpokenAnswerJudge, num_samples: int) -> None:
    noise = 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(0))
    assert judge.recognise(torch.zeros(num_samples)) is None
    assert judge.recognise(noise) is None


def test_words_without_pronunciation_are_named() -> None:
    with pytest.raises(ValueError, match="cannot pronounce 'xyzzy'"):
        SpokenAnswerJudge(["it is xyzzy"])
    with pytest.raises(ValueError, match="at least one answer"):
        SpokenAnswerJudge([])


@pytest.mark.parametrize(
    ("waveform", "message"),
    [(torch.zeros(1, 100), "shape"), (torch.zeros(0), "shape"), (torch.full((100,), torch.nan), "NaN")],
)
def test_refuses_what_is_no_waveform(judge: SpokenAnswerJudge, waveform: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge.recognise(waveform)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(RuntimeError, match="pip install pocketsphinx"):
        SpokenAnswerJudge(["it is paris"])
