"""A whole held-out test on an untrained model and buzzes: every number has its n, every file is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("pocketsphinx", reason="the judge needs the extra [eval]")

from megatron_aqaa.evaluation.held_out import HeldOutConfig, HeldOutTest
from megatron_aqaa.evaluation.judged import load_judged
from megatron_aqaa.evaluation.report import write_report
from megatron_aqaa.evaluation.scores import ScoreCard
from megatron_aqaa.inference.answerer import SpokenAnswerer
from tests.inference.tiny_run import ANSWERS, make_run, make_speech

CONFIG = HeldOutConfig(
    num_questions=3,
    num_spoken={"unseen_voice": 2, "unseen_wording": 1},
    num_free=4,
    num_sampled=2,
    num_answers=2,
    max_new_tokens=40,
    targets={"heard": 0.0},
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ScoreCard, list[tuple[str, int, int]]]:
    run = make_run(tmp_path_factory.mktemp("run"))
    make_speech(run)
    progress: list[tuple[str, int, int]] = []
    with SpokenAnswerer.load(run) as answerer:
        card = HeldOutTest(answerer, run, CONFIG).score(lambda *step: progress.append(step))
    return run, card, progress


def test_every_score_counts_what_was_asked_for(scored: tuple[Path, ScoreCard, object]) -> None:
    card = scored[1]
    assert {score.name: score.n for score in card.scores if score.name != "groups_free"} == {
        "text_unseen_voice": 3,
        "text_unseen_wording": 3,
        "heard": 2,
        "heard_unseen_wording": 1,
        "heard_ceiling": 3,
        "heard_as_written": 3,
        "style": 1,  # spread over three questions: numbers 0, 1 of one split and 0 of the other; only 1 is styled
        "style_ceiling": 1,
        "grammar_constrained": 6,
        "grammar_free": 4,
        "ranking": 0,
    }
    assert card["grammar_constrained"].value == 1.0
    assert (card["heard"].target, card["style"].target) == (0.0, 0.9)


def test_an_untrained_model_knows_nothing(scored: tuple[Path, ScoreCard, object]) -> None:
    assert scored[1]["text_unseen_voice"].right == scored[1]["text_unseen_wording"].right == 0


def test_files_agree_with_the_scores(scored: tuple[Path, ScoreCard, object]) -> None:
    run, card, _ = scored
    assert ScoreCard.load(run / "evaluation" / "scores.json") == card
    assert (run / "evaluation" / "scores.txt").read_text() == card.table() + "\n"
    judged = load_judged(run / "evaluation" / "samples.jsonl")
    manifest = [json.loads(line) for line in (run / "speech" / "manifest.jsonl").read_text().splitlines()]
    for answer in judged:
        record = manifest[answer.id]
        assert (answer.expected, answer.style, answer.split) == (record["answer"], record["style"], record["split"])
        assert soundfile.info(run / answer.answer_audio).frames % 1920 == 0
        assert (run / answer.question_audio).is_file()
        assert answer.heard in (*ANSWERS, "")
    assert (
        sum(answer.heard == answer.expected for answer in judged)
        == card["heard"].right + card["heard_unseen_wording"].right
    )


def test_sampled_answers_are_rated_and_those_of_an_untrained_model_are_worth_nothing(
    scored: tuple[Path, ScoreCard, object],
) -> None:
    ratings = json.loads((scored[0] / "evaluation" / "ratings.json").read_text())
    assert list(ratings.values()) == [[0.0, 0.0]] * 4


def test_another_folder_and_no_speech(scored: tuple[Path, ScoreCard, object]) -> None:
    run, output = scored[0], scored[0] / "comparison" / "sft"
    silent = HeldOutConfig(num_questions=1, num_spoken={}, num_free=1, num_timed=0, num_sampled=0, max_new_tokens=30)
    with SpokenAnswerer.load(run) as answerer:
        card = HeldOutTest(answerer, run, silent, output).score()
    assert ScoreCard.load(output / "scores.json") == card
    assert [score.name for score in card.scores if score.n] == [
        "text_unseen_voice", "text_unseen_wording", "grammar_constrained", "grammar_free",
        *(["groups_free"] if card["groups_free"].n else []),
    ]  # fmt: skip
    assert not list((output / "wav").iterdir())


def test_speed_is_measured(scored: tuple[Path, ScoreCard, object]) -> None:
    speed = json.loads((scored[0] / "evaluation" / "speed.json").read_text())
    assert speed["n"] == 3
    assert 0 < speed["first_word_s"] < speed["first_sound_s"]
    assert speed["real_time_factor"] > 0


def test_progress_is_told(scored: tuple[Path, object, list[tuple[str, int, int]]]) -> None:
    assert {step[0]: step[1:] for step in scored[2]} == {
        "answers": (6, 6),
        "answers without grammar": (4, 4),
        "sampled answers": (8, 8),
        "speech": (3, 3),
    }


def test_the_report_shows_it(scored: tuple[Path, ScoreCard, object]) -> None:
    pytest.importorskip("matplotlib", reason="the report needs the extra [demo]")
    text = write_report(scored[0]).read_text()
    assert text.count("<audio") == 2 * 3
    assert "klatt3" in text


def test_missing_speech_is_named(scored: tuple[Path, ScoreCard, object], tmp_path: Path) -> None:
    with (
        SpokenAnswerer.load(scored[0]) as answerer,
        pytest.raises(ValueError, match=r"manifest\.jsonl: no such manifest"),
    ):
        HeldOutTest(answerer, tmp_path)
