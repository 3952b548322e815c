"""A run in one process that meets bad steps: they leave no trace but in the log, and a resumed run meets them alike."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from megatron_aqaa.checkpoint.store import complete_checkpoints
from megatron_aqaa.training.dpo.train import PreferenceOptimization
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.lm_state import TrainState
from megatron_aqaa.training.loop import run
from megatron_aqaa.training.monitoring.guards import GuardConfig
from megatron_aqaa.training.train import NextTokens, train
from megatron_aqaa.vocabulary import Vocabulary
from tests.training.dpo.tiny_pairs import pair_config, write_start
from tests.training.spoiled import SpoiledTask
from tests.training.tiny_run import logged, stored, tiny_config

NAN, SPIKE = math.nan, 100.0
GUARDS = GuardConfig(spike_window=2)


def config_of(data: Path, directory: Path, guards: GuardConfig = GUARDS, **training: Any) -> TrainConfig:
    config = tiny_config(data, directory, **{"steps": 7, "save_interval": 100, **training})
    return dataclasses.replace(config, guards=guards)


def run_spoiled(config: TrainConfig, factors: Mapping[int, float], signal_at: int | None = None) -> SpoiledTask:
    tasks = []

    def make(config: TrainConfig, state: TrainState, vocabulary: Vocabulary) -> SpoiledTask:
        tasks.append(SpoiledTask(NextTokens(config, state, vocabulary), state, factors, signal_at=signal_at))
        return tasks[0]

    run(config, make)
    return tasks[0]


@pytest.fixture(scope="module")
def spoiled(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SpoiledTask]:
    """Step 3 is no number, step 5 a spike."""
    directory = tmp_path_factory.mktemp("spoiled")
    return directory, run_spoiled(config_of(data, directory), {2: NAN, 4: SPIKE})


def test_a_bad_step_changes_nothing(spoiled: tuple[Path, SpoiledTask]) -> None:
    _, task = spoiled
    assert task.changed == {0: True, 1: True, 2: False, 3: True, 4: False, 5: True, 6: True}
    assert task.state.scheduler.num_steps == 5


def test_the_log_says_which_and_why(spoiled: tuple[Path, SpoiledTask]) -> None:
    records = logged(spoiled[0])
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert [record["skipped_steps"] for record in records] == [0, 0, 1, 1, 2, 2, 2]
    assert {record["step"]: record["skipped"] for record in records if "skipped" in record} == {
        3: "loss is nan",
        5: f"loss {records[4]['loss']:.4g} is a spike: above {limit_of(records[1], records[3]):.4g}",
    }
    assert records[2]["loss"] is None and records[2]["grad_norm"] is None
    assert records[4]["learning_rate"] == records[5]["learning_rate"]


def limit_of(*records: dict[str, float]) -> float:
    first, second = (record["loss"] for record in records)
    return (first + second) / 2 + max(10 * 1.4826 * abs(first - second) / 2, 1.0)


def test_the_documents_of_the_batch_are_kept(data: Path, spoiled: tuple[Path, SpoiledTask]) -> None:
    directory, task = spoiled
    assert sorted(path.name for path in (directory / "skipped").iterdir()) == [
        "step_00000003.json",
        "step_00000005.json",
    ]
    content = json.loads((directory / "skipped" / "step_00000003.json").read_text())
    (rank,) = content["batch"]
    assert [sequence["sequence"] for sequence in rank["sequences"]] == [8, 9, 10, 11]
    assert rank["sequences"][0] == {"sequence": 8, **task.source(8)}
    assert rank["sequences"][0]["data_set"] == str(data / "documents")
    assert rank["sequences"][0]["documents"]


def test_the_data_moves_on(data: Path, spoiled: tuple[Path, SpoiledTask], tmp_path: Path) -> None:
    """Step 4 reads the data of step 4: its counts are those of a run that was not spoiled."""
    train(config_of(data, tmp_path))
    counts = [[record[f"targets_{name}"] for name in ("text", "semantic")] for record in logged(tmp_path)]
    assert [[record[f"targets_{name}"] for name in ("text", "semantic")] for record in logged(spoiled[0])] == counts
    assert len({tuple(count) for count in counts}) > 1


@pytest.mark.parametrize("stop_in", [2, 3])
def test_a_resumed_run_meets_bad_steps_alike(
    data: Path, spoiled: tuple[Path, SpoiledTask], tmp_path: Path, stop_in: int
) -> None:
    """Stopped right after a skipped step, or before the window is full again: the spike is seen from the log."""
    config = config_of(data, tmp_path)
    factors = {2: NAN, 4: SPIKE}
    with pytest.raises(KeyboardInterrupt, match=f"stopped at step {stop_in + 1}, saved"):
        run_spoiled(config, factors, signal_at=stop_in)
    task = run_spoiled(config, factors)
    assert min(task.changed) == stop_in + 1
    assert logged(tmp_path) == logged(spoiled[0])
    assert_equal(stored(tmp_path), stored(spoiled[0]))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if isinstance(value, Tensor):  # random states are stored beside the tensors
            assert value.equal(expected[name]), name


def test_silent_guards_change_nothing(data: Path, tmp_path: Path) -> None:
    off = GuardConfig(spike_deviations=None)
    for name, guards in (("on", GUARDS), ("off", off)):
        train(config_of(data, tmp_path / name, guards))
    assert logged(tmp_path / "on") == logged(tmp_path / "off")
    assert_equal(stored(tmp_path / "on"), stored(tmp_path / "off"))


def test_too_many_bad_steps_end_the_run(data: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path, GuardConfig(max_skipped_in_a_row=2), save_interval=1)
    with pytest.raises(FloatingPointError, match=r"step 4 was skipped \(loss is nan\), the 2\. in a row"):
        run_spoiled(config, dict.fromkeys(range(2, 7), NAN))
    assert len(logged(tmp_path)) == 4
    assert complete_checkpoints(tmp_path)[-1].name == "step_00000003"


def test_preference_optimization_is_guarded_too(tmp_path: Path) -> None:
    write_start(tmp_path)
    config = pair_config(tmp_path, "run", save_interval=100)
    tasks = []

    def make(*arguments: Any) -> SpoiledTask:
        tasks.append(SpoiledTask(PreferenceOptimization(*arguments), arguments[1], {2: NAN}))
        return tasks[0]

    run(config, make)
    assert tasks[0].changed == {0: True, 1: True, 2: False, 3: True}
    content = json.loads((tmp_path / "run" / "skipped" / "step_00000003.json").read_text())
    sequence = content["batch"][0]["sequences"][0]
    assert sequence["data_sets"] == [str(tmp_path / "train")]
    assert sequence["pairs"]
