"""`tools/merge_checkpoints.py`, run as a user would: messages, exit codes, kills, and its memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.checkpoint.merge.models import random_models, write_model

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "merge_checkpoints.py"

# Stops a merge from within, when it has written something, by a signal as a user or a scheduler sends it.
INTERRUPTING = """
import os, runpy, signal, sys
from megatron_aqaa.checkpoint.merge import plan, run
plan.plan_merge.__defaults__ = (768, 0, 100)
counter = run.byte_counter
def counting(done, on_progress):
    def report(done_bytes):
        on_progress(done_bytes)
        if done_bytes > 350:
            os.kill(os.getpid(), signal.{name})
    return counter(done, report)
run.byte_counter = counting
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# Tells how much anonymous memory a merge took beside what was there before.
MEASURING = """
import sys, threading, time
from pathlib import Path
from megatron_aqaa.checkpoint.merge.config import load_merge_config
from megatron_aqaa.checkpoint.merge.plan import plan_merge
from megatron_aqaa.checkpoint.merge.run import run_merge
def anonymous_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
def sample():
    while True:
        peaks.append(anonymous_kib())
        time.sleep(0.002)
plan = plan_merge(load_merge_config(sys.argv[1]), Path(sys.argv[2]), memory_mib=int(sys.argv[3]))
peaks = [anonymous_kib()]
threading.Thread(target=sample, daemon=True).start()
run_merge(plan)
print((max(peaks) - peaks[0]) / 1024)
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, tensors in zip(("a", "b"), random_models("llama", torch.bfloat16, 2), strict=True):
        write_model(tmp_path / name, tensors)
    return write_config(tmp_path, {"a": 5, "b": 1})


def write_config(folder: Path, weights: dict[str, float], **settings: Any) -> Path:
    models = [{"model": str(folder / name), "parameters": {"weight": weight}} for name, weight in weights.items()]
    (folder / "merge.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models, **settings}))
    return folder


def run(*arguments: object, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *before, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_merges_and_says_so(models):
    result = run(models / "merge.yml", models / "merged", "--memory", 64)
    assert result.returncode == 0, result.stderr
    assert "linear: " in result.stdout and "24 tensors" not in result.stderr
    assert f"{models}/merged: 21 tensors" in result.stdout
    a, b, merged = (load_file(models / name / "model.safetensors") for name in ("a", "b", "merged"))
    for name, tensor in merged.items():
        wanted = (5 * a[name].double() + b[name].double()) / 6
        torch.testing.assert_close(tensor.double(), wanted, rtol=2**-8, atol=1e-6)
    again = run(models / "merge.yml", models / "merged")
    assert again.returncode == 0 and "is this merge already" in again.stdout


def test_wrong_input_exits_2_with_one_line(models):
    write_config(models, {"a": 1, "c": 1})
    result = run(models / "merge.yml", models / "merged")
    assert result.returncode == 2
    assert result.stderr == (
        f"merge_checkpoints: {models}/c: no such directory; models are named by their path on this machine\n"
    )
    (models / "merge.yml").write_text("merge_methd: linear\n")
    result = run(models / "merge.yml", models / "merged")
    assert result.returncode == 2 and "did you mean merge_method?" in result.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGKILL", -signal.SIGKILL)])
def test_goes_on_after_an_interruption(models, name, code):
    first = run(models / "merge.yml", models / "merged", before=("-c", INTERRUPTING.replace("{name}", name)))
    assert first.returncode == code, first.stderr
    if name == "SIGINT":
        assert first.stderr.endswith("interrupted; run the same command to continue\n")
    done = {path: path.stat().st_mtime_ns for path in (models / "merged").glob("*.safetensors")}
    assert done
    rest = INTERRUPTING.replace("done_bytes > 350", "False").replace("{name}", name)
    second = run(models / "merge.yml", models / "merged", before=("-c", rest))
    assert second.returncode == 0, second.stderr
    assert f"continues: {len(done)} of " in second.stdout
    assert done == {path: path.stat().st_mtime_ns for path in done}
    assert not list((models / "merged").glob("*.partial"))
    run(models / "merge.yml", models / "whole")
    whole = load_file(models / "whole" / "model.safetensors")
    parts = [load_file(path) for path in (models / "merged").glob("*.safetensors")]
    merged = {key: tensor for part in parts for key, tensor in part.items()}
    assert merged.keys() == whole.keys() and all(torch.equal(merged[key], whole[key]) for key in whole)


def test_a_full_disk_exits_1_and_the_merge_goes_on(tmp_path):
    """Files may grow to 100 kB, the weights want 200."""
    for seed, name in enumerate(("a", "b")):
        tensors = {"w": torch.randn(100_000, generator=torch.Generator().manual_seed(seed)).bfloat16()}
        write_model(tmp_path / name, tensors)
    write_config(tmp_path, {"a": 1, "b": 1})
    full = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    full += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    first = run(tmp_path / "merge.yml", tmp_path / "merged", before=("-c", full))
    assert first.returncode == 1, first.stderr
    assert first.stderr.endswith("File too large; run the same command to continue\n")
    assert not (tmp_path / "merged" / "model.safetensors").exists()
    second = run(tmp_path / "merge.yml", tmp_path / "merged")
    assert second.returncode == 0, second.stderr
    assert load_file(tmp_path / "merged" / "model.safetensors")["w"].isfinite().all()


@pytest.mark.parametrize(
    ("method", "rows", "memory_mib"), [("linear", 24_000, 64), ("ties", 4_000, 16)], ids=["linear", "ties"]
)
def test_memory_is_what_is_given_and_not_that_of_a_tensor(tmp_path, method, rows, memory_mib):
    """One tensor of 200 MB (linear; in float32 twice that for each model) or 32 MB."""
    for seed, name in enumerate(("a", "b", "base")):
        (tmp_path / name).mkdir()
        row = torch.randn(4096, generator=torch.Generator().manual_seed(seed)).bfloat16()
        save_file({"w": row.repeat(rows, 1)}, tmp_path / name / "model.safetensors")
    settings = {} if method == "linear" else {"base_model": str(tmp_path / "base"), "parameters": {"density": 0.5}}
    write_config(tmp_path, {"a": 1, "b": 1}, merge_method=method, **settings)
    result = subprocess.run(
        [sys.executable, "-c", MEASURING, str(tmp_path / "merge.yml"), str(tmp_path / "merged"), str(memory_mib)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    print(method, result.stdout)
    assert float(result.stdout) < memory_mib
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size > rows * 4096 * 2


def test_help_shows_an_example():
    result = run("--help")
    assert result.returncode == 0
    assert "python tools/merge_checkpoints.py examples/merge_5_5_1.yml" in result.stdout
