"""What a run tells of itself: every number is there, adds up, and reaches the boards."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from megatron_aqaa.training.train import train
from tests.training.tiny_run import MEASURED, logged, tiny_config

KINDS = ("text", "linguistic", "semantic")
SEQUENCES, LENGTH = 4, 64


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    train(tiny_config(data, directory, report_interval=2, tensorboard=True, peak_tflops=2.0))
    return directory


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_losses_by_modality_add_up_to_the_loss(run: Path) -> None:
    """The tiny run weighs text three times."""
    for record in records_of(run):
        weights = {kind: record[f"targets_{kind}"] * (3 if kind == "text" else 1) for kind in KINDS}
        total = sum(record[f"loss_{kind}"] * weight for kind, weight in weights.items())
        assert total / sum(weights.values()) == pytest.approx(record["loss"], rel=1e-5)
        assert min(weights.values()) > 0


def test_rates_and_sizes(run: Path) -> None:
    for record in records_of(run):
        assert record.keys() >= MEASURED
        assert record["tokens_per_second"] * record["seconds"] == pytest.approx(SEQUENCES * LENGTH)
        groups = record["audio_seconds_per_second"] * record["seconds"] / 0.12
        assert groups == pytest.approx(round(groups)) and groups > 0
        assert record["mfu"] == pytest.approx(record["model_tflops"] / 2.0)
        assert 0 < record["data_wait_seconds"] < record["seconds"]
        assert 0.05 < record["memory_gib"] < 100


def test_seconds_of_audio_are_those_of_the_batch(data: Path, run: Path) -> None:
    from megatron_aqaa.data.datasets import build_dataset
    from tests.training.tiny_run import VOCABULARY

    config = tiny_config(data, run)
    dataset = build_dataset(config.data, VOCABULARY, SEQUENCES * config.training.steps, config.training.seed)
    audio = sum(int(VOCABULARY.is_audio(dataset[i]["token_ids"]).sum()) for i in range(SEQUENCES))
    first = records_of(run)[0]
    assert first["audio_seconds_per_second"] * first["seconds"] == pytest.approx(audio * 0.024)


def test_one_rank_reports_itself(run: Path) -> None:
    reports = [record for record in records_of(run) if "forward_seconds" in record]
    assert [record["step"] for record in reports] == [2, 4]
    for record in reports:
        assert 0 < record["forward_seconds"] < record["seconds"] * 10
        assert record["max_memory_gib"] > 0
        assert "slowest_rank" not in record


def test_without_a_known_peak_there_is_no_mfu(data: Path, tmp_path: Path) -> None:
    train(tiny_config(data, tmp_path, steps=2))
    assert all("mfu" not in record and record["model_tflops"] > 0 for record in records_of(tmp_path))


def test_tensorboard_shows_the_numbers_of_the_log(run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for field in ("loss", "loss_semantic", "grad_norm", "mfu", "skipped_steps"):
        shown = {event.step: event.value for event in events.Scalars(field)}
        assert shown == pytest.approx({record["step"]: record[field] for record in records_of(run)}, rel=1e-6)


@pytest.mark.parametrize(("package", "setting"), [("tensorboard", "tensorboard"), ("wandb", "wandb_project")])
def test_a_missing_package_is_named_before_anything_is_built(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, setting: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    value: object = True if setting == "tensorboard" else "project"
    with pytest.raises(ValueError, match=rf"training\.{setting} needs the package {package}: pip .*\[track\]"):
        train(tiny_config(data, tmp_path, **{setting: value}))
    assert not (tmp_path / "log.jsonl").exists()


def test_weights_and_biases_gets_one_run_for_all_sessions(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the package, which the tests do not install."""
    started, logs = [], []

    def init(**settings: Any) -> SimpleNamespace:
        started.append(settings)
        log = lambda values, step: logs.append((step, values))
        return SimpleNamespace(log=log, finish=lambda: logs.append("finished"))

    package = ModuleType("wandb")
    package.__spec__ = importlib.util.spec_from_loader("wandb", None)
    package.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    config = tiny_config(data, tmp_path, steps=2, wandb_project="speech")
    train(config)
    longer = dataclasses.replace(config.training, steps=3)
    train(dataclasses.replace(config, training=longer))
    assert [settings["project"] for settings in started] == ["speech", "speech"]
    assert started[0]["id"] == started[1]["id"] == (tmp_path / "wandb_id").read_text()
    assert [entry if entry == "finished" else entry[0] for entry in logs] == [1, 2, "finished", 3, "finished"]
    assert logs[0][1]["loss"] == logged(tmp_path)[0]["loss"]
    assert "step" not in logs[0][1]


def test_a_line_that_was_cut_off_stays_alone(data: Path, tmp_path: Path) -> None:
    tmp_path.joinpath("log.jsonl").write_text('{"step": 1, "lo')
    train(tiny_config(data, tmp_path, steps=2))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines[0] == '{"step": 1, "lo'
    assert [json.loads(line)["step"] for line in lines[1:]] == [1, 2]


@pytest.mark.parametrize(("name", "value"), [("keep_every", 0), ("report_interval", 0), ("peak_tflops", -1.0)])
def test_settings_that_make_no_sense_are_refused(data: Path, tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"training.{name} = {value}"):
        tiny_config(data, tmp_path, **{name: value})
