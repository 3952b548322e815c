"""How a training command says how it ended."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_aqaa.training.command import training_command


@dataclass(frozen=True)
class Config:
    steps: int = 1


def ended(error: BaseException | None, path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    def run(config: Config) -> None:
        assert config.steps == 3
        if error is not None:
            raise error

    path.write_text("steps: 3\n")
    monkeypatch.setattr(sys, "argv", ["tools/train.py", str(path), *overrides])
    return training_command("help", Config, run)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, 0, ""),
        (FloatingPointError("loss nan"), 1, "train: loss nan\n"),
        (ValueError("wrong"), 2, "train: wrong\n"),
        (KeyboardInterrupt("stopped at step 3, saved"), 75, "train: stopped at step 3, saved\n"),
        (KeyboardInterrupt(), 130, "train: interrupted; run the same command again\n"),
    ],
)
def test_status_and_message(
    error: BaseException | None,
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended(error, tmp_path / "run.yaml", monkeypatch) == status
    assert capsys.readouterr().err == message


def test_overrides_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(None, tmp_path / "run.yaml", monkeypatch, "step=4") == 2
    assert "did you mean steps?" in capsys.readouterr().err


def test_other_errors_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        ended(RuntimeError("a bug"), tmp_path / "run.yaml", monkeypatch)
