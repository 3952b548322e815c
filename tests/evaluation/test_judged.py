"""Records survive the disk; the dozen for the report is varied and blind to the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_aqaa.evaluation.judged import JudgedAnswer, dozen, load_judged, save_judged

ANSWER = JudgedAnswer(
    id=3,
    split="unseen_voice",
    style="slow",
    speaker="klatt3",
    question="spell cat say it slowly",
    expected="c a t",
    written="c a t",
    heard="c a d",
    duration_s=1.44,
    pitch_hz=181.5,
    style_followed=True,
    question_audio="speech/wav/000003.wav",
    answer_audio="evaluation/wav/000003.wav",
)


def test_records_survive_the_disk(tmp_path: Path) -> None:
    answers = [ANSWER, replace(ANSWER, id=4, style="neutral", style_followed=None)]
    save_judged(answers, tmp_path / "samples.jsonl")
    assert load_judged(tmp_path / "samples.jsonl") == answers


def test_dozen_takes_turns_over_styles_and_splits() -> None:
    many = [replace(ANSWER, id=i, style="neutral") for i in range(50)]
    few = [replace(ANSWER, id=100 + i, style="slow", split="unseen_wording") for i in range(2)]
    assert [a.id for a in dozen(many + few, 6)] == [0, 100, 1, 101, 2, 3]


def test_dozen_does_not_look_at_the_result() -> None:
    answers = [replace(ANSWER, id=i, style=("slow", "high")[i % 2]) for i in range(20)]
    spoiled = [replace(a, heard="", written="", style_followed=False) for a in answers]
    assert [a.id for a in dozen(answers)] == [a.id for a in dozen(spoiled)]


def test_fewer_than_a_dozen() -> None:
    assert dozen([ANSWER]) == [ANSWER]
    assert dozen([]) == []
