"""Kills, damaged and missing files, full disks: a clear error, an input that is untouched, and no half output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron_aqaa.checkpoint import store
from megatron_aqaa.checkpoint.conversion.export_huggingface import ExportOptions, plan_export
from megatron_aqaa.checkpoint.conversion.huggingface_source import CONFIG, FILES
from megatron_aqaa.checkpoint.conversion.import_huggingface import ImportOptions, plan_import
from megatron_aqaa.checkpoint.conversion.plan import Conversion
from megatron_aqaa.checkpoint.conversion.reshard import plan_reshard
from megatron_aqaa.checkpoint.conversion.run import STATE, run_conversion
from megatron_aqaa.checkpoint.conversion.verify import check_recorded, compare
from megatron_aqaa.checkpoint.output_directory import alone_in
from megatron_aqaa.checkpoint.safetensors_directory import INDEX, WEIGHTS
from megatron_aqaa.platform import ParallelConfig
from tests.checkpoint.conversion.tiny_huggingface import configuration, random_tensors, write_model

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SMALL = ImportOptions(shard_bytes=40_000)
SECOND = "model-00002-of-00003.safetensors"
VERBS = ("import", "reshard", "export")
Planned = Callable[[str, Path], Conversion]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_model(tmp_path / "hf", configuration("step1"), num_files=3)
    return tmp_path / "hf"


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Path:
    run_conversion(plan_import(source, tmp_path / "run", SMALL))
    return tmp_path / "run"


@pytest.fixture
def planned(source: Path, run: Path) -> Planned:
    """The conversion of a verb, into several files."""

    def plan(verb: str, output: Path) -> Conversion:
        if verb == "import":
            return plan_import(source, output, SMALL)
        return plan_reshard(run, output, ParallelConfig(2, 2)) if verb == "reshard" else plan_export(run, output)

    return plan


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@contextmanager
def untouched(*paths: Path) -> Iterator[None]:
    before = [contents(path) for path in paths]
    yield
    assert [contents(path) for path in paths] == before


def require_nothing_that_loads(output: Path) -> None:
    """Neither under its name nor where it is written, whoever tries."""
    assert not output.exists() or not any(output.iterdir())
    work = output.with_name(output.name + ".partial")
    assert store.latest_checkpoint(work) is None
    assert not (work / CONFIG).exists()


class Killed(BaseException):
    pass


def kill_after(plan: Conversion, num_bytes: int) -> None:
    def die(done: int) -> None:
        if done > num_bytes:
            raise Killed

    with pytest.raises(Killed):
        run_conversion(plan, on_progress=die)


@pytest.mark.parametrize("num_bytes", [0, 100_000, 250_000])
@pytest.mark.parametrize("verb", VERBS)
def test_killed_anywhere_it_is_no_checkpoint_and_goes_on(planned, source, run, tmp_path, verb, num_bytes):
    with untouched(source, run):
        kill_after(planned(verb, tmp_path / "out"), num_bytes)
        require_nothing_that_loads(tmp_path / "out")
        work = tmp_path / "out.partial"
        done = {name: (work / name).stat().st_mtime_ns for name in json.loads((work / STATE).read_text())["done"]}
        assert bool(done) == (num_bytes > 0)
        run_conversion(planned(verb, tmp_path / "out"))
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == done  # not written again
    run_conversion(planned(verb, tmp_path / "whole"))
    for name in (file.name for file in planned(verb, tmp_path / "third").files):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert check_recorded(tmp_path / "out") > 0 and compare(source, tmp_path / "out").worst is None
    assert not work.exists() and not (tmp_path / "out" / STATE).exists()


@pytest.mark.parametrize("verb", VERBS)
def test_killed_while_it_writes_what_stands_beside(planned, source, tmp_path, verb, monkeypatch):
    """At every file that is opened for it: weights are all there by then, and still nothing loads."""
    opened = 0
    write_text, copyfile = Path.write_text, shutil.copyfile

    def step() -> None:
        nonlocal opened
        opened += 1
        if opened == stop:
            raise Killed

    def writing(path: Path, *arguments: Any) -> int:
        step()
        return write_text(path, *arguments)

    def copying(*arguments: Any) -> Any:
        step()
        return copyfile(*arguments)

    plan = planned(verb, tmp_path / "out")
    stop = 1
    while True:
        opened = 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", writing)
            patch.setattr(shutil, "copyfile", copying)
            try:
                run_conversion(plan)
                break
            except Killed:
                require_nothing_that_loads(tmp_path / "out")
        stop += 1
    assert stop > 2
    assert compare(source, tmp_path / "out").worst is None


@pytest.mark.parametrize("change", ["source", "settings"])
def test_what_another_conversion_left_is_not_taken(source, tmp_path, change):
    kill_after(plan_import(source, tmp_path / "out", SMALL), 150_000)
    options = SMALL
    if change == "source":
        shutil.rmtree(source)
        write_model(source, configuration("step1"), random_tensors(configuration("step1"), seed=1), num_files=3)
    else:
        options = ImportOptions(shard_bytes=50_000)
    run_conversion(plan_import(source, tmp_path / "out", options))
    assert compare(source, tmp_path / "out").worst is None


def test_a_source_that_changes_meanwhile(source, tmp_path):
    plan = plan_import(source, tmp_path / "out", SMALL)
    with pytest.raises(ValueError, match="hf: was changed while it was converted"):
        run_conversion(plan, on_progress=lambda done: os.utime(source / CONFIG, (1, 1)))
    require_nothing_that_loads(tmp_path / "out")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def change_config(source: Path, **values: Any) -> None:
    (source / CONFIG).write_text(json.dumps(json.loads((source / CONFIG).read_text()) | values))


DAMAGED_SOURCES = {
    "truncated shard": (lambda source: cut(source / SECOND), f"{SECOND}: truncated: model.* ends at byte"),
    "missing shard": (lambda source: (source / SECOND).unlink(), f"{SECOND}: named by {INDEX}, but not there"),
    "missing index": (lambda source: (source / INDEX).unlink(), f"hf: has neither {INDEX} nor {WEIGHTS}"),
    "damaged index": (lambda source: cut(source / INDEX), f"{INDEX}: not JSON"),
    "duplicate tensors": (
        lambda source: shutil.copy(source / SECOND.replace("2", "1", 1), source / SECOND),
        f"{SECOND}: tensor model.* is also in model-00001-of-00003.safetensors",
    ),
    "missing config": (lambda source: (source / CONFIG).unlink(), "hf/config.json: no such file"),
    "damaged config": (lambda source: cut(source / CONFIG), "hf/config.json: not JSON"),
    "wrong shapes": (
        lambda source: change_config(source, hidden_size=36),
        r"hf: 39 tensor\(s\) of another shape: model.embed_tokens.weight is \[110, 48\], \[110, 36\] by the config",
    ),
    "missing tensors": (
        lambda source: change_config(source, num_hidden_layers=5),
        r"hf: 9 tensor\(s\) are missing .*model.layers.4.self_attn.q_proj.weight",
    ),
}


@pytest.mark.parametrize("fault", DAMAGED_SOURCES)
def test_a_damaged_hugging_face_directory_is_named(source, tmp_path, fault):
    damage, message = DAMAGED_SOURCES[fault]
    damage(source)
    with untouched(source), pytest.raises(ValueError, match=message):
        plan_import(source, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def first_shard(checkpoint: Path) -> Path:
    return min(checkpoint.glob("*.distcp"))


DAMAGED_CHECKPOINTS = {
    "truncated shard": (lambda at: cut(first_shard(at)), r"__0_0.distcp: missing or truncated: \d+ bytes wanted"),
    "missing shard": (lambda at: first_shard(at).unlink(), r"__0_0.distcp: missing or truncated: .* 0 there"),
    "missing index": (lambda at: (at / ".metadata").unlink(), "step_00000000: .metadata or common.pt cannot be read"),
    "truncated index": (lambda at: cut(at / ".metadata"), "step_00000000: .metadata or common.pt cannot be read"),
    "other bytes as index": (
        lambda at: (at / ".metadata").write_bytes(bytes(range(200))),
        "step_00000000: .metadata or common.pt cannot be read",
    ),
    "missing plain values": (lambda at: (at / "common.pt").unlink(), ".metadata or common.pt cannot be read"),
    "truncated plain values": (lambda at: cut(at / "common.pt"), ".metadata or common.pt cannot be read"),
    "damaged marker": (lambda at: cut(at / "metadata.json"), "metadata.json: cannot be read .*; copy the checkpoint"),
    "missing marker": (lambda at: (at / "metadata.json").unlink(), "run: no complete checkpoint here"),
    "missing configuration": (lambda at: (at.parents[1] / "config.yaml").unlink(), "config.yaml: no such file"),
    "damaged configuration": (lambda at: (at.parents[1] / "config.yaml").write_text("a: [1"), "config.yaml: not YAML"),
    "wrong shapes": (
        lambda at: replace(at.parents[1] / "config.yaml", "ffn_hidden_size: 64", "ffn_hidden_size: 60"),
        r"2 tensor\(s\) of another shape: decoder.layers.mlp.linear_fc1.weight is \[4, 128, 48\], \[4, 120, 48\]",
    ),
}


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("fault", DAMAGED_CHECKPOINTS)
def test_a_damaged_checkpoint_without_checksums_is_named(run, tmp_path, fault):
    """As training saves it."""
    damage, message = DAMAGED_CHECKPOINTS[fault]
    (run / "conversion_record.json").unlink()
    checkpoint = store.latest_checkpoint(run)
    assert checkpoint is not None
    damage(checkpoint)
    with untouched(run):
        with pytest.raises(ValueError, match=message):
            plan_export(run, tmp_path / "out")
        with pytest.raises(ValueError, match=message):
            plan_reshard(run, tmp_path / "out", ParallelConfig())
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("part", ["elements", "between", "metadata", "truncated", "record"])
def test_a_flipped_byte_is_found_and_named(run, tmp_path, part):
    record = json.loads((run / "conversion_record.json").read_text())
    name, described = next((n, f) for n, f in record["files"].items() if "linear_fc2" in str(f["regions"]))
    file = run / name
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
        cut(file)
        message = f"{file.name}: missing or truncated"
    else:
        (run / "conversion_record.json").write_text("{")
        message = "conversion_record.json: cannot be read"
    with pytest.raises(ValueError, match=message):
        check_recorded(run)
    if part in ("elements", "between", "record"):
        with pytest.raises(ValueError, match=message):  # and nothing is made of it
            run_conversion(plan_export(run, tmp_path / "out"))
        require_nothing_that_loads(tmp_path / "out")


def test_a_flipped_byte_of_an_exported_model_is_found_when_it_is_read_again(run, tmp_path):
    run_conversion(plan_export(run, tmp_path / "exported"))
    run_conversion(plan_import(tmp_path / "exported", tmp_path / "again", SMALL))
    flip(tmp_path / "exported" / SECOND, (tmp_path / "exported" / SECOND).stat().st_size - 3)
    with pytest.raises(ValueError, match=f"{SECOND}: model.* is not what was written: its sha256 is"):
        run_conversion(plan_import(tmp_path / "exported", tmp_path / "out", SMALL))
    require_nothing_that_loads(tmp_path / "out")


LARGE = "model.layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("verb", "dtype", "value", "tensor", "file"),
    [
        ("export", "float16", 1e6, LARGE, r"__0_\d.distcp"),
        ("import", "bfloat16", 3.4e38, "decoder.layers.mlp.linear_fc1.weight", r"model-0000\d-of-00003.safetensors"),
    ],
)
def test_values_that_a_cast_would_make_infinite(tmp_path, verb, dtype, value, tensor, file):
    tensors = random_tensors(configuration("llama"))
    tensors[LARGE][5, 7] = value
    write_model(tmp_path / "hf", configuration("llama"), tensors, num_files=3)
    if verb == "export":
        run_conversion(plan_import(tmp_path / "hf", tmp_path / "run", SMALL))
        plan = plan_export(tmp_path / "run", tmp_path / "out", ExportOptions(dtype=dtype))
    else:
        plan = plan_import(tmp_path / "hf", tmp_path / "out", ImportOptions(dtype=dtype))
    shown = f"{value:.3g}".replace("+", r"\+")
    message = rf"{tensor} holds values up to {shown}, which do not fit torch.{dtype} \(read from {file}\); take"
    with untouched(tmp_path / "hf"), pytest.raises(ValueError, match=message):
        run_conversion(plan)
    require_nothing_that_loads(tmp_path / "out")


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


def test_an_empty_output_is_taken(source, tmp_path):
    (tmp_path / "out").mkdir()
    run_conversion(plan_import(source, tmp_path / "out", SMALL))
    assert compare(source, tmp_path / "out").worst is None


def test_too_small_a_disk_is_refused_before_the_start(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ValueError, match="out: the result needs .* MB, 0 MB are free"):
        run_conversion(plan_import(source, tmp_path / "out", SMALL))
    assert not list((tmp_path / "out.partial").rglob("*.distcp"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """128 KB: less than the model, on which the check of free space is not yet told so."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.fixture
def blind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of free space sees another disk."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fills_up_meanwhile(planned, source, run, small_disk, blind, verb):
    file = r"model-0000\d-of-00003.safetensors" if verb == "export" else r"checkpoints/step_00000000/__\d_\d.distcp"
    place = rf"{small_disk}/out.partial(/{file}( \((model|decoder|embed|output)\S+\))?)?"  # tensor, file, or the note
    message = rf"No space left on device, writing: '{place}'"
    with untouched(source, run):
        with pytest.raises(OSError, match=message):
            run_conversion(planned(verb, small_disk / "out"))
        require_nothing_that_loads(small_disk / "out")
        resize(small_disk, "64m")
        run_conversion(planned(verb, small_disk / "out"))
    assert compare(source, small_disk / "out").worst is None


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_is_full_after_the_weights(planned, source, run, small_disk, blind, verb):
    for folder in (source, run / FILES):
        (folder / "tokenizer_config.json").write_text(json.dumps({"long": "x" * 4_000_000}))
    (run / "conversion_record.json").unlink()
    resize(small_disk, "2m")
    with pytest.raises(OSError, match="No space left on device"):
        run_conversion(planned(verb, small_disk / "out"))
    require_nothing_that_loads(small_disk / "out")
    resize(small_disk, "64m")
    run_conversion(planned(verb, small_disk / "out"))
    assert compare(source, small_disk / "out").worst is None
