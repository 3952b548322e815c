from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = [sys.executable, "tools/synthesize_speech.py"]
SMALL = (
    "num_train=10 num_validation=2 num_unseen_voice=2 num_unseen_wording=2 num_workers=0"
    " assistant.num_train_takes=0 assistant.num_validation_takes=0"
).split()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "speech.yaml"
    path.write_text("seed: 5\n")
    return path


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


def test_makes_a_corpus(config: Path, tmp_path: Path) -> None:
    result = run(config, *SMALL, "--output", tmp_path / "speech")
    assert result.returncode == 0, result.stderr
    manifest = Path(result.stdout.strip())
    assert manifest == tmp_path / "speech" / "manifest.jsonl"
    assert len(manifest.read_text().splitlines()) == len(list((tmp_path / "speech" / "wav").iterdir())) == 16
    assert "16/16" in result.stderr


def test_help_has_an_example() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert "python tools/synthesize_speech.py examples/tiny_cpu/speech.yaml" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.yaml"], "gone.yaml: no such configuration file"),
        (["CONFIG", "num_trian=3"], "did you mean num_train?"),
        (["CONFIG", "user.voices=[nobody]", "num_train=1", *SMALL[1:]], "no variant 'nobody'"),
        (["CONFIG", "num_train=-1"], "num_train"),
    ],
)
def test_wrong_settings(config: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    named = [str(config) if argument == "CONFIG" else argument for argument in arguments]
    result = run(*named, "--output", tmp_path / "speech")
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_no_speech_engine(config: Path, tmp_path: Path) -> None:
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError")
    result = run(config, *SMALL, "--output", tmp_path / "speech", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "pip install espeakng-loader" in result.stderr
    assert "Traceback" not in result.stderr


def test_interrupt_then_continue(config: Path, tmp_path: Path) -> None:
    output = tmp_path / "speech"
    arguments = [str(config), *SMALL, "num_train=200", "num_workers=2", "utterances_per_block=20"]
    command = [*SCRIPT, *arguments, "--output", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (output / "blocks").exists() or not any((output / "blocks").glob("*.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as ctrl-C does: to every process of the terminal
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to continue" in errors
    assert "Traceback" not in errors
    assert not (output / "manifest.jsonl").exists()

    result = run(*arguments, "--output", output)
    assert result.returncode == 0, result.stderr
    assert len((output / "manifest.jsonl").read_text().splitlines()) == 206
