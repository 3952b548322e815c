"""Tokenizing that is killed, workers and all or the parent alone, ends in the bytes of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from tests.tokenizer.tiny import speech, write_tokenizer

pytestmark = pytest.mark.distributed

NUM_CLIPS = int(os.environ.get("TOKENIZED_CLIPS", "240"))
TOOL = Path(__file__).parents[2] / "tools" / "tokenize_audio.py"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and a manifest of clips."""
    directory = tmp_path_factory.mktemp("inputs")
    write_tokenizer(directory)
    lines = []
    for number in range(NUM_CLIPS):
        soundfile.write(directory / f"{number}.wav", speech(number, 4 + number % 7)[0], 16000, subtype="PCM_16")
        lines.append(json.dumps({"audio": f"{number}.wav"}) + "\n")
    (directory / "manifest.jsonl").write_text("".join(lines))
    return directory


def start(inputs: Path, output: Path) -> subprocess.Popen[bytes]:
    settings = {"manifest": inputs / "manifest.jsonl", "tokenizer": inputs, "output": output, "lines_per_block": 8}
    (inputs / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    command = [sys.executable, str(TOOL), str(inputs / "config.yaml"), "num_workers=2"]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def num_blocks(output: Path) -> int:
    return len([path for path in (output / "blocks").glob("*.npz") if "partial" not in path.name])


def files(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in ("audio.bin", "audio.idx", "report.json", "rejects.jsonl")}


@pytest.mark.parametrize("workers_too", [True, False])
def test_killed_runs_end_in_the_same_bytes(inputs: Path, tmp_path: Path, workers_too: bool) -> None:
    whole, killed, choose = tmp_path / "whole", tmp_path / "killed", random.Random(workers_too)
    assert start(inputs, whole).wait(300) == 0
    for wanted in (1, NUM_CLIPS // 16):  # in the first block, and in the middle
        process = start(inputs, killed)
        while num_blocks(killed) < wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(choose.uniform(0, 0.02))
        os.killpg(process.pid, signal.SIGKILL) if workers_too else process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (killed / "audio.idx").exists()
    left = num_blocks(killed)
    assert 0 < left < NUM_CLIPS // 8
    assert start(inputs, killed).wait(300) == 0
    assert files(killed) == files(whole)
