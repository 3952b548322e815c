"""A run that goes on at another parallel layout, from an asynchronous checkpoint of two data-parallel ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_aqaa.training.train import train
from tests.distributed.killed_run import WORLD_SIZE, KilledRun
from tests.training.tiny_run import tiny_config, write_data

pytestmark = pytest.mark.distributed

STEPS, AT = 5, 2
OTHERS: dict[str, dict[str, Any]] = {
    "TP2+SP": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "PP2": {"pipeline_model_parallel_size": 2},
    "PP2 interleaved": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def straight(folder: Path) -> dict[int, list[float]]:
    """DP2 without a stop, every step saved."""
    run = KilledRun(
        folder / "data", folder / "dp2", {}, steps=STEPS, save_interval=1, keep_checkpoints=9, async_save=True
    )
    run.start()
    assert run.join() == [0] * WORLD_SIZE, run.errors()
    return logged(run)


def logged(run: KilledRun) -> dict[int, list[float]]:
    return {record["step"]: [record["loss"], record["grad_norm"]] for record in run.records()}


def continued(folder: Path, name: str, parallel: dict[str, Any]) -> KilledRun:
    """A run whose only checkpoint is that of DP2 after step `AT`."""
    directory = f"checkpoints/step_{AT:08d}"
    shutil.copytree(folder / "dp2" / directory, folder / name / directory)
    return KilledRun(folder / "data", folder / name, parallel, steps=STEPS, async_save=True)


def last_steps(straight: dict[int, list[float]]) -> dict[int, list[float]]:
    assert len(straight) == STEPS
    return {step: values for step, values in straight.items() if step > AT}


def test_the_same_layout_goes_on_to_the_last_bit(folder: Path, straight: dict[int, list[float]]) -> None:
    run = continued(folder, "same", {})
    run.start()
    assert run.join() == [0] * WORLD_SIZE, run.errors()
    assert logged(run) == last_steps(straight)


@pytest.mark.parametrize("name", OTHERS)
def test_another_layout_goes_on_with_the_same_losses(folder: Path, straight: dict[int, list[float]], name: str) -> None:
    run = continued(folder, name, OTHERS[name])
    run.start()
    assert run.join() == [0] * WORLD_SIZE, run.errors()
    assert_close(run, straight)


def test_one_process_goes_on_with_the_same_losses(folder: Path, straight: dict[int, list[float]]) -> None:
    run = continued(folder, "one", {})
    train(tiny_config(folder / "data", run.run, steps=STEPS))
    assert_close(run, straight)


def assert_close(run: KilledRun, straight: dict[int, list[float]]) -> None:
    found, wanted = logged(run), last_steps(straight)
    assert found.keys() == wanted.keys()
    for step, values in wanted.items():
        assert found[step] == pytest.approx(values, rel=1e-5)
