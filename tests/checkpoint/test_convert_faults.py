"""Kills, damaged and missing files, full disks: a clear error, an input that is untouched, and no half output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_aqaa.checkpoint import store
from megatron_aqaa.checkpoint.conversion import Conversion, run_conversion
from megatron_aqaa.checkpoint.export_huggingface import plan_export
from megatron_aqaa.checkpoint.import_huggingface import ImportOptions, plan_import
from megatron_aqaa.checkpoint.output_directory import alone_in
from megatron_aqaa.checkpoint.verify import check_recorded, compare
from tests.checkpoint.tiny_huggingface import configuration, random_tensors, write_model

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SMALL = ImportOptions(shard_bytes=40_000)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_model(tmp_path / "hf", configuration("step1"), num_files=3)
    return tmp_path / "hf"


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


class Killed(BaseException):
    pass


def kill_after(plan: Conversion, num_bytes: int) -> None:
    def die(done: int) -> None:
        if done > num_bytes:
            raise Killed

    with pytest.raises(Killed):
        run_conversion(plan, on_progress=die)


def test_a_killed_import_is_no_checkpoint_and_goes_on(source, tmp_path):
    before = contents(source)
    kill_after(plan_import(source, tmp_path / "run", SMALL), 150_000)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        store.require_checkpoint(tmp_path / "run.partial")
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run.partial").rglob("*.distcp")}
    assert len(times) > 1
    run_conversion(plan_import(source, tmp_path / "run", SMALL))
    run_conversion(plan_import(source, tmp_path / "whole", SMALL))
    checkpoint = store.latest_checkpoint(tmp_path / "run")
    assert {name: (checkpoint / name).stat().st_mtime_ns for name in times} == times  # not written again
    for file in store.latest_checkpoint(tmp_path / "whole").glob("*.distcp"):
        assert (checkpoint / file.name).read_bytes() == file.read_bytes()
    assert contents(source) == before and not (tmp_path / "run.partial").exists()
    assert check_recorded(tmp_path / "run") > 0


def test_a_killed_export_holds_nothing_that_loads(source, tmp_path):
    run_conversion(plan_import(source, tmp_path / "run", SMALL))
    kill_after(plan_export(tmp_path / "run", tmp_path / "out"), 150_000)
    assert not (tmp_path / "out").exists()
    left = {file.name for file in (tmp_path / "out.partial").iterdir()}
    assert not left & {"config.json", "model.safetensors.index.json", "model.safetensors"}
    run_conversion(plan_export(tmp_path / "run", tmp_path / "out"))
    assert compare(source, tmp_path / "out").worst is None


@pytest.mark.parametrize("change", ["source", "settings"])
def test_what_another_conversion_left_is_not_taken(source, tmp_path, change):
    kill_after(plan_import(source, tmp_path / "run", SMALL), 150_000)
    options = SMALL
    if change == "source":
        shutil.rmtree(source)
        write_model(source, configuration("step1"), random_tensors(configuration("step1"), seed=1), num_files=3)
    else:
        options = ImportOptions(shard_bytes=50_000)
    run_conversion(plan_import(source, tmp_path / "run", options))
    assert compare(source, tmp_path / "run").worst is None


def test_a_source_that_changes_meanwhile(source, tmp_path):
    plan = plan_import(source, tmp_path / "run", SMALL)
    with pytest.raises(ValueError, match="hf: was changed while it was converted"):
        run_conversion(plan, on_progress=lambda done: os.utime(source / "config.json", (1, 1)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("truncated", "model-00002-of-00003.safetensors: truncated: .* ends at byte"),
        ("missing", "model-00002-of-00003.safetensors: named by model.safetensors.index.json, but not there"),
        ("index", "hf: has neither model.safetensors.index.json nor model.safetensors"),
        ("duplicate", "tensor .* is also in model-00001-of-00003.safetensors"),
        ("config", "hf/config.json: no such file"),
        ("shape", r"39 tensor|tensor\(s\) of another shape: model.embed_tokens.weight is \[110, 48\], \[110, 36\]"),
        ("layers", r"9 tensor\(s\) are missing .*model.layers.4.self_attn.q_proj.weight"),
    ],
)
def test_a_damaged_source_is_named(source, tmp_path, fault, message):
    second = source / "model-00002-of-00003.safetensors"
    config = json.loads((source / "config.json").read_text())
    if fault == "truncated":
        second.write_bytes(second.read_bytes()[:-1])
    elif fault == "missing":
        second.unlink()
    elif fault == "index":
        (source / "model.safetensors.index.json").unlink()
    elif fault == "duplicate":
        shutil.copy(source / "model-00001-of-00003.safetensors", second)
    elif fault == "config":
        (source / "config.json").unlink()
    else:
        change = {"hidden_size": 36} if fault == "shape" else {"num_hidden_layers": 5}
        (source / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        plan_import(source, tmp_path / "run", SMALL)
    assert not (tmp_path / "run").exists() and not (tmp_path / "run.partial").exists()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["elements", "between", "metadata", "truncated", "record"])
def test_a_flipped_byte_is_found_and_named(source, tmp_path, part):
    record = run_conversion(plan_import(source, tmp_path / "run", SMALL))
    name, described = next((n, f) for n, f in record["files"].items() if "linear_fc2" in str(f["regions"]))
    file = tmp_path / "run" / name
    tensor, start, length, _ = next(region for region in described["regions"] if "linear_fc2" in region[0])
    message = rf"{file.name}: {tensor.split('[')[0]}.* is not what was written"
    if part == "elements":
        flip(file, start + length // 2)
    elif part == "between":
        flip(file, start - 1)
        message = f"{file.name}: header and trailer is not what was written"
    elif part == "metadata":
        file = file.with_name(".metadata")
        flip(file, 40)
        message = ".metadata: missing or changed since conversion_record.json was written"
    elif part == "truncated":
        file.write_bytes(file.read_bytes()[:-5])
        message = f"{file.name}: missing or truncated"
    else:
        (tmp_path / "run" / "conversion_record.json").write_text("{")
        message = "conversion_record.json: cannot be read"
    with pytest.raises(ValueError, match=message):
        check_recorded(tmp_path / "run")
    if part in ("elements", "between", "record"):
        with pytest.raises(ValueError, match=message):  # and nothing is made of it
            run_conversion(plan_export(tmp_path / "run", tmp_path / "out"))
        assert not (tmp_path / "out").exists()


def test_outputs_that_are_there_are_left_alone(source, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="run: is there already"):
        plan_import(source, tmp_path / "run", SMALL)
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other.partial: is there already and no conversion made it"):
        run_conversion(plan_import(source, tmp_path / "other", SMALL))
    assert (tmp_path / "other.partial" / "notes.txt").read_text() == "mine"
    (tmp_path / "third.partial").mkdir()
    with alone_in(tmp_path / "third.partial"), pytest.raises(ValueError, match="another process is at work here"):
        run_conversion(plan_import(source, tmp_path / "third", SMALL))


def test_too_small_a_disk_is_refused_before_the_start(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ValueError, match="run: the result needs .* MB, 0 MB are free"):
        run_conversion(plan_import(source, tmp_path / "run", SMALL))
    assert not list((tmp_path / "run.partial").rglob("*.distcp"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """128 KB: less than the model, on which the check of free space is not yet told so."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_meanwhile(source, tmp_path, small_disk, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match=r"No space left on device, writing: '__0_\d.distcp \(|No space left"):
            run_conversion(plan_import(source, small_disk / "run", SMALL))
    assert not (small_disk / "run").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    run_conversion(plan_import(source, small_disk / "run", SMALL))
    assert compare(source, small_disk / "run").worst is None


def test_verify_tells_the_worst_difference(source, tmp_path):
    tensors = random_tensors(configuration("step1"))
    tensors["model.layers.1.mlp.down_proj.weight"][3, 9] += 0.5
    tensors["model.norm.weight"][7] += 0.25
    write_model(tmp_path / "other", configuration("step1"), tensors)
    run_conversion(plan_import(source, tmp_path / "run", SMALL))
    for path in (source, tmp_path / "run"):
        found = compare(path, tmp_path / "other")
        assert (found.num_tensors, found.num_different, found.worst) == (39, 2, "model.layers.1.mlp.down_proj.weight")
        assert found.worst_index == (3, 9) and found.largest == pytest.approx(0.5, abs=1e-6)
    tensors["model.norm.weight"][2] = torch.nan
    write_model(tmp_path / "nan", configuration("step1"), tensors)
    assert compare(source, tmp_path / "nan").largest == float("inf")
    del tensors["model.norm.weight"]
    write_model(tmp_path / "less", configuration("step1"), tensors)
    with pytest.raises(ValueError, match=r"1 tensor\(s\) only in .*hf: model.norm.weight"):
        compare(source, tmp_path / "less")
    with pytest.raises(ValueError, match="has no conversion_record.json"):
        check_recorded(source)
