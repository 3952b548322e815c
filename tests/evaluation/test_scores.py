"""Counts, errors and targets on numbers worked by hand; grammar shares on answers written out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from megatron_aqaa.evaluation.scores import MEASURES, Score, ScoreCard, lawful, lawful_groups
from megatron_aqaa.vocabulary import AnswerFormat, Vocabulary

VOCABULARY = Vocabulary.for_text(32)
L, S, T = VOCABULARY.linguistic_start, VOCABULARY.semantic_start, 9
START, END, EOT = VOCABULARY.audio_start, VOCABULARY.audio_end, VOCABULARY.eot
GROUP = [L, L, S, S, S]


def test_share_and_its_standard_error() -> None:
    score = Score("x", "X", "by hand").of([True] * 6 + [False] * 2)
    assert (score.right, score.n, score.value) == (6, 8, 0.75)
    assert score.standard_error == pytest.approx(math.sqrt(0.7 * 0.3 / 8))  # (6 + 1) / (8 + 2) = .7


def test_all_right_is_not_certain() -> None:
    assert Score("x", "X", "").of([True] * 8).standard_error == pytest.approx(math.sqrt(0.9 * 0.1 / 8))


def test_nothing_measured_is_no_number() -> None:
    score = Score("x", "X", "", target=0.5)
    assert (score.value, score.standard_error, score.reached) == (None, None, None)
    assert "not measured" in ScoreCard((score,)).table()


@pytest.mark.parametrize(("right", "reached"), [(84, False), (85, True), (100, True)])
def test_a_target_is_reached_at_its_own_value(right: int, reached: bool) -> None:
    assert Score("x", "X", "", right, 100, target=0.85).reached is reached


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="5 right of 4"):
        Score("x", "X", "", right=5, n=4)


def test_card_round_trips_and_lists_what_was_missed(tmp_path: Path) -> None:
    card = ScoreCard().with_outcomes({"heard": [True, False], "style": [True]})
    card.save(tmp_path / "scores.json")
    again = ScoreCard.load(tmp_path / "scores.json")
    assert again == card
    assert [score.name for score in again.missed] == ["heard"]
    assert again["text_unseen_voice"].n == 0


def test_targets_of_a_reduced_run() -> None:
    card = ScoreCard().with_targets({"heard": 0.3})
    assert card["heard"].target == 0.3
    assert card["style"].target == 0.9
    with pytest.raises(ValueError, match=r"hearing.*known scores"):
        ScoreCard().with_targets({"hearing": 0.3})


def test_the_issue_s_targets() -> None:
    promised = {score.name: score.target for score in MEASURES if score.target}
    assert promised == {
        "text_unseen_voice": 0.95,
        "text_unseen_wording": 0.85,
        "heard": 0.85,
        "style": 0.90,
        "grammar_constrained": 1.0,
    }


def test_lawful_answers() -> None:
    answers = [
        [T, START, *GROUP, *GROUP, END, EOT],
        [T, START, *GROUP, *GROUP, END],  # no end of turn
        [T, START, L, L, S, S, END, EOT],  # a broken group
        [START, *GROUP, END, EOT],  # no text first
    ]
    assert lawful(answers, VOCABULARY, AnswerFormat()) == [True, False, False, False]


def test_a_stray_token_spoils_every_later_group() -> None:
    assert lawful_groups([T, START, *GROUP, *GROUP, END, EOT], VOCABULARY) == [True, True]
    assert lawful_groups([T, START, *GROUP, S, *GROUP, *GROUP, END, EOT], VOCABULARY) == [True, False, False, False]
    assert lawful_groups([T, EOT], VOCABULARY) == []
