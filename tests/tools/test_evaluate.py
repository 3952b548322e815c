"""`tools/evaluate.py` and `tools/report.py` on an untrained run."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pocketsphinx", reason="the judge needs the extra [eval]")

from tests.inference.tiny_run import make_run, make_speech

ROOT = Path(__file__).parents[2]
Run = Callable[..., int]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("run"))
    make_speech(run)
    return run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a tool from the project's root; returns the exit code."""
    monkeypatch.chdir(ROOT)

    def run_tool(name: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(f"tools/{name}.py", run_name="__main__")
        return int(stop.value.code or 0)

    return run_tool


def test_scores_then_report(call: Run, run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fewer = (
        "num_questions=2",
        "num_spoken={unseen_voice: 1}",
        "num_free=1",
        "num_sampled=1",
        "pairs=null",
        "max_new_tokens=30",
    )
    assert call("evaluate", "--run", run_directory, *fewer) == 0
    printed = capsys.readouterr().out
    assert "Right answer, unseen voices                0.000" in printed
    assert "MISSED" in printed
    assert printed.strip() == (run_directory / "evaluation" / "scores.txt").read_text().strip()
    pytest.importorskip("matplotlib", reason="the report needs the extra [demo]")
    assert call("report", "--run", run_directory, "--title", "A small run") == 0
    assert "<h1>A small run</h1>" in (run_directory / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--run", "nowhere"), "nowhere: no such run directory; run `make demo` first"),
        (("num_question=3",), "did you mean num_questions?"),
        (("--config", "nowhere.yaml"), "nowhere.yaml: no such configuration file"),
    ],
)
def test_mistakes_are_explained(
    call: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert call("evaluate", *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_report_of_nothing_is_refused(call: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", "--run", "nowhere") == 2
    assert "make demo" in capsys.readouterr().err
