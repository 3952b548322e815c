"""`tools/convert_checkpoint.py` as users run it: the commands of docs/checkpoints.md, exit codes, kills, its memory."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_aqaa.checkpoint.conversion.import_huggingface import plan_import
from megatron_aqaa.checkpoint.conversion.run import run_conversion
from megatron_aqaa.checkpoint.conversion.verify import check_recorded, compare
from tests.checkpoint.conversion.tiny_huggingface import configuration, write_model

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "convert_checkpoint.py"
pytestmark = pytest.mark.slow


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment(), timeout=200)


class InProcess:
    """The command without the seconds that a process takes to start."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.chdir(folder)
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self.monkeypatch.setattr(sys, "argv", [str(TOOL), *arguments])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(TOOL), run_name="__main__")
        return int(stopped.value.code or 0), *self.capsys.readouterr()

    def follow(self, recipe: str) -> list[str]:
        """stdout of every command of a recipe."""
        outputs = []
        for arguments in commands(recipe):
            code, said, error = self(*arguments)
            assert code == 0, f"{arguments}: {error}"
            outputs.append(said)
        return outputs


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return InProcess(tmp_path, monkeypatch, capsys)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def commands(recipe: str) -> list[list[str]]:
    """The lines of one recipe of the document, as arguments."""
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    block = re.search(rf"<!-- test: {recipe} -->\n```\n(.*?)```", text, re.DOTALL)
    assert block, f"docs/checkpoints.md has no recipe {recipe}"
    return [line.removeprefix("python tools/convert_checkpoint.py ").split() for line in block[1].splitlines()]


def test_recipe_of_a_released_checkpoint(tmp_path, tool):
    write_model(tmp_path / "Step-Audio-Chat", configuration("step1"), num_files=2)
    inspected, imported, same, _, exported_same = tool.follow("step1")
    assert "family: step1" in inspected and "misfit" not in inspected
    assert "runs/step1: written" in imported
    assert same == exported_same == "39 tensors, equal bit by bit\n"
    (planned,) = tool.follow("plan")
    assert "linear_qkv.weight [4, 64, 48] float32 in 8 part(s)" in planned and "about" in planned
    assert not (tmp_path / "runs" / "planned").exists()


def test_recipe_of_a_text_model(tmp_path, tool):
    write_model(tmp_path / "Qwen2-1.5B", configuration("qwen2"))
    imported, _, inspected = tool.follow("text")
    assert "<audio_0> is id 110, 5234 ids in all" in imported
    assert "vocabulary: 5234 rows" in inspected


def test_recipe_of_an_own_run(tmp_path, tool):
    source = configuration("step1")
    tensors = write_model(tmp_path / "hf", source)
    for name in ("step1", "sft"):
        run_conversion(plan_import(tmp_path / "hf", tmp_path / "runs" / name))
    outputs = tool.follow("own")
    assert outputs[2] == "9 tensors, equal bit by bit\n"
    half = load_file(tmp_path / "exported-half" / "model.safetensors")
    assert all(torch.equal(half[name], tensor.half()) for name, tensor in tensors.items())
    assert (tmp_path / "exported-like" / "config.json").read_text() == (tmp_path / "hf" / "config.json").read_text()


def test_exit_codes(tmp_path, tool):
    write_model(tmp_path / "hf", configuration("llama"))
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    write_model(tmp_path / "other", configuration("llama"), tensors)
    assert tool("verify", "hf", "other")[:2] == (3, "1 of 39 tensors differ, most model.norm.weight[0]: by 1\n")
    error = "convert_checkpoint: nowhere/config.json: no such file; a Hugging Face directory has one\n"
    assert tool("import", "nowhere", "run") == (2, "", error)


SLOWLY = """
import runpy, sys, time
from megatron_aqaa.checkpoint.conversion import file_writer
write = file_writer.DigestedRegion.write
file_writer.DigestedRegion.write = lambda self, data: (time.sleep(0.02), write(self, data))[1]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def noted(work: Path) -> list[str]:
    """Files that an unfinished conversion counts as done."""
    state = work / "conversion_state.json"
    return list(json.loads(state.read_text())["done"]) if state.exists() else []


LAYOUT = ("--tensor-parallel", "2", "--pipeline-parallel", "2")  # a file for each of four ranks
COMMANDS = {"import": ("import", "hf", "out", *LAYOUT), "reshard": ("reshard", "run", "out", *LAYOUT),
            "export": ("export", "run", "out")}  # fmt: skip


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("verb", "kind"), [*((verb, signal.SIGKILL) for verb in COMMANDS), ("export", signal.SIGINT)])
def test_killed_and_run_again(tmp_path, verb, kind):
    write_model(tmp_path / "hf", configuration("step1"), num_files=4)
    run_conversion(plan_import(tmp_path / "hf", tmp_path / "run"))
    before = {path: path.read_bytes() for name in ("hf", "run") for path in files_of(tmp_path / name)}
    command = [sys.executable, "-c", SLOWLY, str(TOOL), *COMMANDS[verb]]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 100
        while not noted(tmp_path / "out.partial") and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(kind)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (-kind if kind == signal.SIGKILL else 130), said
    assert not (tmp_path / "out").exists()
    left = {file.name for file in files_of(tmp_path / "out.partial")}
    assert not left & {"config.json", "model.safetensors.index.json", "metadata.json", ".metadata"}
    done = {name: (tmp_path / "out.partial" / name).stat().st_mtime_ns for name in noted(tmp_path / "out.partial")}
    assert 0 < len(done) < 4
    assert run(tmp_path, *COMMANDS[verb]).returncode == 0
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == done
    assert compare(tmp_path / "hf", tmp_path / "out").worst is None
    assert check_recorded(tmp_path / "out") > 0
    assert {path: path.read_bytes() for path in before} == before


# Tells how much anonymous memory a verb took beside what was there before its first tensor.
MEASURING = """
import sys, threading, time
from pathlib import Path
from megatron_aqaa.checkpoint.conversion.run import run_conversion
from megatron_aqaa.checkpoint.conversion.import_huggingface import plan_import
def anonymous_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
def sample():
    while True:
        peaks.append(anonymous_kib())
        time.sleep(0.002)
plan = plan_import(Path("hf"), Path("run"))
peaks = [anonymous_kib()]
threading.Thread(target=sample, daemon=True).start()
run_conversion(plan, memory_mib=32)
print((max(peaks) - peaks[0]) / 1024)
"""


def test_memory_is_what_is_given_and_not_that_of_a_tensor(tmp_path):
    """Tables of 100 MB each."""
    write_model(tmp_path / "hf", configuration("llama", vocab_size=400_000, hidden_size=60, num_attention_heads=6))
    command = [sys.executable, "-c", MEASURING]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=120)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 32
