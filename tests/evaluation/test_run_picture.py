"""Logs become curves: repeated, skipped and half-written lines; one run and several."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_aqaa.evaluation.run_picture import draw_runs, read_log


def step(number: int, **more: Any) -> dict[str, Any]:
    losses = {name: 8 * math.exp(-number / 50) + 1 for name in ("loss", "loss_text", "loss_semantic")}
    rates = {"grad_norm": 1 + number % 3, "learning_rate": 1e-3, "tokens_per_second": 5000.0}
    return {"step": number, **losses, **rates, "skipped_steps": 0, **more}


def write_run(run: Path, records: list[dict[str, Any]], tail: str = "") -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return run


def test_the_last_line_of_a_step_counts(tmp_path: Path) -> None:
    records = [
        {"step": 0, "validation_loss": 9.0}, step(1), step(2), {"step": 2, "validation_loss": 8.0},
        step(3, loss=77.0), step(3, loss=5.0), {"step": 3, "validation_loss": 7.0},
    ]  # fmt: skip
    read = read_log(write_run(tmp_path, records, tail='{"step": 4, "lo'))
    assert [record["step"] for record in read] == [0, 1, 2, 3]
    assert [record.get("validation_loss") for record in read] == [9.0, None, 8.0, 7.0]
    assert read[3]["loss"] == 5.0


def test_a_run_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"log\.jsonl: no steps to draw"):
        read_log(tmp_path)


def test_one_run_with_skipped_steps(tmp_path: Path) -> None:
    records = [step(n) for n in range(1, 200)]
    records[50] = {**step(51), "loss": None, "grad_norm": None, "skipped": "loss is nan", "skipped_steps": 1}
    output = tmp_path / "pictures" / "run.svg"
    draw_runs({"a run": read_log(write_run(tmp_path, records))}, output)
    svg = output.read_text()
    titles = set(re.findall(r"<!-- (.*?) -->", svg))
    assert {"loss", "loss, text", "loss, semantic", "gradient norm", "learning rate", "tokens a second"} <= titles
    assert "a run: 199 steps, 1 skipped" in titles
    assert "loss, linguistic" not in titles  # there is none


def test_several_runs_and_another_ending(tmp_path: Path) -> None:
    runs = {name: [step(n) for n in range(1, 50)] for name in ("first", "second")}
    draw_runs(runs, tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"a picture ends in \.svg, \.png or \.pdf"):
        draw_runs(runs, tmp_path / "both.txt")


def test_one_picture_of_one_log(tmp_path: Path) -> None:
    """The same file twice: nothing of the clock or of chance in it."""
    for name in ("a.svg", "b.svg"):
        draw_runs({"run": [step(n) for n in range(1, 30)]}, tmp_path / name)
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()
