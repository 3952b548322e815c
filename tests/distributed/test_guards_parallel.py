"""Two processes skip the same steps, whichever rank meets the trouble, and go on as one process does."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from megatron_aqaa import platform
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.lm_state import build_state, new_state
from megatron_aqaa.training.loop import to_the_end
from megatron_aqaa.training.monitoring.guards import GuardConfig
from megatron_aqaa.training.train import NextTokens
from tests.distributed.launch import run
from tests.training.spoiled import SpoiledTask
from tests.training.tiny_run import VOCABULARY, logged, tiny_config, write_data

pytestmark = pytest.mark.distributed

FACTORS = {2: math.nan, 4: 100.0}
LAYOUTS: dict[str, dict[str, Any]] = {
    "DP2": {},
    "TP2": {"tensor_model_parallel_size": 2},
    "PP2": {"pipeline_model_parallel_size": 2},
}


class Outcome(NamedTuple):
    changed: dict[int, bool]
    scheduler_steps: int


def config_of(folder: Path, name: str, parallel: dict[str, Any], guards: GuardConfig) -> TrainConfig:
    settings = {"steps": 7, "save_interval": 100, "micro_batch_size": 1, "init_from": folder / "start"}
    config = tiny_config(folder / "data", folder / name, parallel, **settings)
    return dataclasses.replace(config, guards=guards)


def train_spoiled(config: TrainConfig, factors: dict[int, float], on_rank: int | None) -> Outcome:
    config.run.mkdir(exist_ok=True)
    platform.initialize(config.parallel, config.training.seed)
    state = build_state(config, VOCABULARY)
    task = SpoiledTask(NextTokens(config, state, VOCABULARY), state, factors, on_rank)
    to_the_end(config, state, task, VOCABULARY)
    return Outcome(task.changed, state.scheduler.num_steps)


def on_layouts(folder: Path) -> dict[str, Outcome]:
    """On one rank. With data parallelism only rank 1 meets the trouble."""
    guards = GuardConfig(spike_window=2)
    return {
        name: train_spoiled(config_of(folder, name, parallel, guards), FACTORS, 1 if name == "DP2" else None)
        for name, parallel in LAYOUTS.items()
    }


def until_the_limit(folder: Path) -> str:
    """On one rank: what it raises."""
    config = config_of(folder, "limit", {}, GuardConfig(max_skipped_in_a_row=2))
    try:
        train_spoiled(config, dict.fromkeys(range(1, 7), math.nan), on_rank=1)
    except FloatingPointError as error:
        return str(error)
    return "nothing"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what all start from, and the run of one process."""
    folder = tmp_path_factory.mktemp("guards")
    write_data(folder / "data")
    serial = config_of(folder, "serial", {}, GuardConfig(spike_window=2))
    platform.initialize(ParallelConfig(), seed=9)
    new_state(serial.model, VOCABULARY, serial.parallel, serial.optimizer, steps=7).save(folder / "start", keep=1)
    train_spoiled(serial, FACTORS, None)
    platform.shutdown()
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Outcome]]:
    return run(on_layouts, 2, folder)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_rank_skips_the_same_steps(name: str, two: list[dict[str, Outcome]]) -> None:
    for outcomes in two:
        changed = {0: True, 1: True, 2: False, 3: True, 4: False, 5: True, 6: True}
        assert outcomes[name] == Outcome(changed, scheduler_steps=5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_steps_that_count_are_those_of_one_process(name: str, folder: Path, two: list[dict[str, Outcome]]) -> None:
    found, expected = logged(folder / name), logged(folder / "serial")
    assert ["skipped" in record for record in found] == ["skipped" in record for record in expected]
    assert sum("skipped" in record for record in found) == 2
    for ours, theirs in zip(found, expected, strict=True):
        if "skipped" not in theirs:
            assert ours == pytest.approx(theirs, rel=1e-4)  # Megatron takes norms in fp32


def test_the_file_says_what_each_rank_read(folder: Path, two: list[dict[str, Outcome]]) -> None:
    batch = json.loads((folder / "DP2" / "skipped" / "step_00000003.json").read_text())["batch"]
    assert [[part["sequence"] for part in rank["sequences"]] for rank in batch] == [[8, 10], [9, 11]]


def test_all_ranks_give_up_together(folder: Path) -> None:
    for message in run(until_the_limit, 2, folder):
        assert message.startswith("step 3 was skipped (loss is nan), the 2. in a row")
