"""Win rates by hand, and the stages of a run side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from megatron_aqaa.evaluation.comparison import STAGES, WinRate, load_stages, rows, table
from megatron_aqaa.evaluation.scores import ScoreCard


def write_stage(run: Path, label: str, right: int, ratings: dict[str, list[float]]) -> None:
    folder = run / STAGES[label]
    folder.mkdir(parents=True)
    outcomes = {"text_unseen_voice": [True] * right + [False] * (10 - right), "ranking": [True, False]}
    ScoreCard().with_outcomes(outcomes).save(folder / "scores.json")
    (folder / "ratings.json").write_text(json.dumps(ratings))


def test_win_rate_by_hand() -> None:
    won = WinRate.of({"1": [7.0], "2": [7.0], "3": [0.0], "4": [7.0]}, {"1": [0.0], "2": [6.0], "3": [5.0], "4": [6.1]})
    assert won is not None
    assert (won.wins, won.losses, won.ties, won.n, won.rate) == (2, 1, 1, 4, 0.625)
    # outcomes 1, 1, 0, ½: mean .625, squared distances .140625, .140625, .390625, .015625, over 3, over 4
    assert won.standard_error == pytest.approx(math.sqrt(0.6875 / 3 / 4))


def test_answers_to_one_question_are_one_observation() -> None:
    won = WinRate.of({"1": [7.0, 7.0], "2": [0.0, 7.0]}, {"1": [0.0, 0.0], "2": [7.0, 0.0]})
    assert won is not None
    assert (won.wins, won.losses, won.n, won.rate) == (3, 1, 2, 0.75)
    assert won.standard_error == pytest.approx(0.25)  # outcomes 1 and ½; as four answers it would be .25 · √(4 / 3)
    once = WinRate.of({"1": [7.0], "2": [0.0]}, {"1": [0.0], "2": [0.0]})
    thrice = WinRate.of({"1": [7.0] * 3, "2": [0.0] * 3}, {"1": [0.0] * 3, "2": [0.0] * 3})
    assert once is not None and thrice is not None
    assert (once.rate, once.standard_error) == (thrice.rate, thrice.standard_error)


def test_nothing_is_compared_with_other_questions_or_other_numbers_of_answers() -> None:
    assert WinRate.of({"1": [7.0], "2": [0.0]}, {"1": [7.0], "3": [0.0]}) is None
    assert WinRate.of({"1": [7.0], "2": [0.0]}, {"1": [7.0], "2": [0.0, 7.0]}) is None
    assert WinRate.of({}, {}) is None


def test_stages_stand_side_by_side_in_the_order_of_training(tmp_path: Path) -> None:
    write_stage(tmp_path, "merged", 9, {"1": [7.0], "2": [7.0]})
    write_stage(tmp_path, "SFT-1", 5, {"1": [0.0], "2": [7.0]})
    write_stage(tmp_path, "DPO", 7, {"1": [7.0], "2": [0.0]})
    stages = load_stages(tmp_path)
    assert [stage.label for stage in stages] == ["SFT-1", "DPO", "merged"]
    found = {row.label: row.cells for row in rows(stages)}
    assert [cell and cell[0] for cell in found["Right answer, unseen voices"]] == [0.5, 0.7, 0.9]
    assert [cell and cell[0] for cell in found["Sampled answer preferred to SFT-1's"]] == [None, 0.5, 0.75]
    assert "Style command followed" not in found
    lines = table(stages).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["SFT-1", "DPO", "merged"]


def test_without_sft_1_there_is_nothing_to_compare(tmp_path: Path) -> None:
    write_stage(tmp_path, "merged", 9, {})
    assert load_stages(tmp_path) == []
