"""`tools/generate.py` as a new user runs it: what works, what does not, and what he is told."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.inference.tiny_run import make_run

TOOL = Path(__file__).parents[2] / "tools" / "generate.py"
Run = Callable[..., int]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch, run_directory: Path, tmp_path: Path) -> Run:
    """Runs the tool in a folder of its own; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, run: Path = run_directory) -> int:
        words = [*map(str, arguments), "--run", str(run), "--max-new-tokens", "40"]
        monkeypatch.setattr(sys, "argv", ["generate.py", *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOL), run_name="__main__")
        return int(stop.value.code or 0)

    return call


def write_tone(path: Path, rate_hz: int = 16_000, channels: int = 1, duration_s: float = 1.0) -> Path:
    tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(int(rate_hz * duration_s)) / rate_hz)
    soundfile.write(path, np.stack([tone] * channels, 1), rate_hz)
    return path


def test_prints_the_text_and_writes_the_speech(
    generate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tone(tmp_path / "question.wav")
    assert generate("question.wav", "-o", "out/answer.wav") == 0
    *words, summary = capsys.readouterr().out.strip().splitlines()  # an untrained model writes line breaks too
    info = soundfile.info(tmp_path / "out" / "answer.wav")
    assert words
    assert summary.startswith(f"out/answer.wav: {info.duration:.2f} s of speech")
    assert (info.samplerate, info.channels, info.frames % 1920) == (16_000, 1, 0)


def test_seed_decides(generate: Run, tmp_path: Path) -> None:
    write_tone(tmp_path / "question.wav")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert generate("question.wav", "-o", f"{name}.wav", "--seed", seed, "--temperature", 1.0) == 0
    a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_streamed_answer_is_as_long(generate: Run, tmp_path: Path) -> None:
    write_tone(tmp_path / "question.wav")
    assert generate("question.wav", "-o", "whole.wav") == 0
    assert generate("question.wav", "-o", "streamed.wav", "--stream") == 0
    assert soundfile.info(tmp_path / "whole.wav").frames == soundfile.info(tmp_path / "streamed.wav").frames


@pytest.mark.parametrize(
    ("name", "rate_hz", "channels"), [("stereo.wav", 48_000, 2), ("phone.wav", 8_000, 1), ("q.mp3", 44_100, 2)]
)
def test_recordings_of_any_kind(generate: Run, tmp_path: Path, name: str, rate_hz: int, channels: int) -> None:
    write_tone(tmp_path / name, rate_hz, channels)
    assert generate(name) == 0
    assert (tmp_path / "answer.wav").is_file()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_text("no sound"), "not readable"),
        (lambda path: write_tone(path, 8_000, duration_s=600), "lasts 600.0 s; a question may last 30 s"),
        (lambda path: soundfile.write(path, np.zeros(16_000), 16_000), "silence only"),
    ],
    ids=["missing", "folder", "empty", "text", "ten minutes", "silence"],
)
def test_unusable_recordings_are_explained(
    generate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], prepare: Callable[[Path], object], said: str
) -> None:
    prepare(tmp_path / "question.wav")
    assert generate("question.wav") == 2
    error = capsys.readouterr().err
    assert error.startswith("generate: question.wav")
    assert said in error
    assert not (tmp_path / "answer.wav").exists()


def test_missing_run_and_wrong_settings(generate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tone(tmp_path / "question.wav")
    assert generate("question.wav", run=Path("runs/demo")) == 2
    assert "runs/demo: no such run directory; run `make demo` first" in capsys.readouterr().err
    assert generate("question.wav", "--temperature", -1) == 2
    assert "temperature" in capsys.readouterr().err
    assert generate("question.wav", "-o", "answer.mp3") == 2
    assert ".wav" in capsys.readouterr().err
