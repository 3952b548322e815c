"""`tools/make_preference_pairs.py` and `tools/select_answers.py` as a user meets them."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.inference.tiny_run import make_run, make_speech

Run = Callable[..., int]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("run"))
    make_speech(run)
    return run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run_tool(name: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(f"tools/{name}.py", run_name="__main__")
        return int(stop.value.code or 0)

    return run_tool


def test_blocks_that_are_there_become_the_pairs(
    call: Run, run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"run": str(run_directory), "model": str(run_directory / "sft"), "output": str(tmp_path / "pairs.jsonl"),
                "splits": ["unseen_voice"], "num_answers": 2, "max_new_tokens": 30, "num_workers": 0}  # fmt: skip
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(settings))
    assert call("make_preference_pairs", tmp_path / "pairs.yaml") == 2  # an untrained model is never right
    assert "no pair among 4 questions: raise temperature" in capsys.readouterr().err
    (block,) = (tmp_path / "pairs.blocks").iterdir()
    made = json.loads(block.read_text())
    assert made["counts"] == {"answers": 8, "right": 0, "all_wrong": 4, "paired": 0, "unusable": 0}
    block.write_text(json.dumps({"pairs": [{"prompt": []}], "counts": {"answers": 8, "right": 3, "paired": 1}}))
    assert call("make_preference_pairs", tmp_path / "pairs.yaml") == 0
    printed = capsys.readouterr().out
    assert "3 of 8 answers right" in printed
    assert "1 paired, 0 all right, 0 all wrong, 0 unusable" in printed
    assert (tmp_path / "pairs.jsonl").read_text() == '{"prompt": []}\n'


@pytest.mark.parametrize(
    ("tool", "settings", "said"),
    [
        ("make_preference_pairs", {"run": "nowhere", "model": "m", "output": "o"}, "nowhere/speech/manifest.jsonl"),
        ("make_preference_pairs", {"run": "r", "model": "m", "output": "o", "num_answer": 3}, "mean num_answers?"),
        ("select_answers", {"run": "nowhere", "output": "o"}, "nowhere/speech/manifest.jsonl"),
        ("select_answers", {"run": "r", "output": "o", "num_conversations": 0}, "must be at least 1"),
    ],
)
def test_mistakes_are_explained(
    call: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: str, settings: dict[str, object], said: str
) -> None:
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert call(tool, tmp_path / "settings.yaml") == 2
    assert said in capsys.readouterr().err
