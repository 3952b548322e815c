"""`tools/plot_run.py` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")


def plot(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/plot_run.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_draws_into_the_run(tmp_path: Path) -> None:
    lines = [json.dumps({"step": n, "loss": 1 / n, "grad_norm": 1.0}) + "\n" for n in range(1, 30)]
    (tmp_path / "log.jsonl").write_text("".join(lines))
    done = plot(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "run.svg")
    assert (tmp_path / "run.svg").read_text().startswith("<?xml")
    assert "Warning" not in done.stderr


def test_a_run_without_a_log_is_named_with_code_2(tmp_path: Path) -> None:
    failed = plot(tmp_path)
    assert failed.returncode == 2
    assert f"{tmp_path / 'log.jsonl'}: no steps to draw" in failed.stderr
    assert "Traceback" not in failed.stderr
