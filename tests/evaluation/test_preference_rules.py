"""The rules: right, then style, then brevity; nobody listens where it cannot matter."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from megatron_aqaa.data.indexed import Documents, DocumentWriter
from megatron_aqaa.data.manifest import Recording
from megatron_aqaa.evaluation.preference_rules import AnswerRules, Rating
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary.for_text(24)
GROUP = [VOCABULARY.linguistic_start] * 2 + [VOCABULARY.semantic_start] * 3


def tone(duration_s: float, f0_hz: float) -> np.ndarray:
    time_s = np.arange(round(duration_s * 16000)) / 16000
    return sum(np.sin(2 * np.pi * k * f0_hz * time_s) / k for k in range(1, 6)) * 0.1


@pytest.fixture
def rules(tmp_path: Path) -> AnswerRules:
    """Takes of one answer: neutral ones of 1.0 s and 4 groups, slow ones of 5 and 6 groups; another split beside."""
    takes = [
        ("neutral", 1.0, 4, "train"),
        ("slow", 1.4, 5, "train"),
        ("slow", 1.5, 6, "train"),
        ("slow", 3, 9, "later"),
    ]
    recordings = []
    with DocumentWriter(tmp_path / "audio", VOCABULARY) as writer:
        for line, (style, duration_s, groups, split) in enumerate(takes):
            path = tmp_path / f"{line}.wav"
            soundfile.write(path, tone(duration_s, 200), 16000)
            writer.add(GROUP * groups)
            recordings.append(Recording(line, path, "it is blue", "assistant", split, duration_s, line, style=style))
    return AnswerRules(recordings, Documents(tmp_path / "audio"))


QUESTION = Recording(9, Path(), "what colour is the sky", "user", "train", 1.0, 9, answer="it is blue")
SLOW = dataclasses.replace(QUESTION, style="slow")


def waveform(duration_s: float, f0_hz: float = 200) -> torch.Tensor:
    return torch.from_numpy(tone(duration_s, f0_hz)).float()


def nobody() -> torch.Tensor:
    raise AssertionError("spoken without need")


def test_right_before_style_before_brevity() -> None:
    order = [
        Rating(right=False),
        Rating(right=True, style_followed=False, brevity=0.0),
        Rating(right=True, style_followed=False, brevity=1.0),
        Rating(right=True, style_followed=True, brevity=0.0),
        Rating(right=True, style_followed=True, brevity=0.5),
    ]
    scores = [rating.score for rating in order]
    assert scores == sorted(set(scores))
    assert scores[0] == 0
    assert Rating(right=True, brevity=1.0).score == Rating(right=True, style_followed=True, brevity=1.0).score


def test_a_wrong_answer_is_worth_nothing_and_is_not_spoken(rules: AnswerRules) -> None:
    assert rules.rate(SLOW, "it is red", 25, nobody) == Rating(right=False)
    assert rules.rate(QUESTION, "it is", 25, nobody).score == 0


def test_without_a_command_nobody_listens(rules: AnswerRules) -> None:
    assert rules.rate(QUESTION, "it is blue", 20, nobody) == Rating(right=True, style_followed=None, brevity=1.0)


@pytest.mark.parametrize(("duration_s", "follows"), [(1.4, True), (1.0, False), (2.5, False)])
def test_style_is_measured_on_the_waveform(rules: AnswerRules, duration_s: float, follows: bool) -> None:
    rating = rules.rate(SLOW, "it is blue", 30, lambda: waveform(duration_s))
    assert rating.style_followed is follows
    assert rating.score == (7.0 if follows else 5.0)


@pytest.mark.parametrize(("groups", "brevity"), [(1, 1.0), (6, 1.0), (9, 0.5), (12, 0.0), (40, 0.0)])
def test_brevity_counts_from_the_longest_take_in_the_style(rules: AnswerRules, groups: int, brevity: float) -> None:
    assert rules.brevity(SLOW, 5 * groups) == pytest.approx(brevity)


def test_an_answer_that_nobody_recorded_is_named(rules: AnswerRules) -> None:
    with pytest.raises(ValueError, match="no recording of 'it is red' in the style neutral"):
        rules.brevity(dataclasses.replace(QUESTION, answer="it is red"), 5)
