"""Real ranks that are late: one that hangs is found with the stacks of all, one that is slow is named."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_aqaa import platform
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.lm_state import build_state
from megatron_aqaa.training.lm_step import StepResult
from megatron_aqaa.training.loop import to_the_end
from megatron_aqaa.training.monitoring.guards import Judge, always
from megatron_aqaa.training.monitoring.watchdog import WatchdogConfig
from megatron_aqaa.training.train import NextTokens
from tests.distributed.launch import run
from tests.training.tiny_run import VOCABULARY, tiny_config, write_data

pytestmark = pytest.mark.distributed

TIMEOUT_S, HANG_S, SLOW_S = 4.0, 16.0, 0.4


class HangingTask(NextTokens):
    """Rank 1 sleeps in its third step."""

    def step(self, judge: Judge = always) -> StepResult:
        if self.state.step == 2 and platform_rank() == 1:
            time.sleep(HANG_S)
        return super().step(judge)


def platform_rank() -> int:
    import torch

    return torch.distributed.get_rank()


def hang(config: TrainConfig) -> str:
    """On one rank: what it said."""
    platform.initialize(config.parallel)
    state = build_state(config, VOCABULARY)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        to_the_end(config, state, HangingTask(config, state, VOCABULARY), VOCABULARY)
    return said.getvalue()


def slow_down(config: TrainConfig) -> str:
    """On one rank: what it said. Rank 1 sleeps in every forward pass of its model."""
    platform.initialize(config.parallel)
    state = build_state(config, VOCABULARY)
    if platform_rank() == 1:
        state.model_chunks[0].module.register_forward_pre_hook(lambda *_: time.sleep(SLOW_S))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        to_the_end(config, state, NextTokens(config, state, VOCABULARY), VOCABULARY)
    return said.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_data(directory)
    return directory


def config_of(data: Path, directory: Path, *, aborts: bool = False, **training: Any) -> TrainConfig:
    config = tiny_config(data, directory, **training)
    return dataclasses.replace(config, watchdog=WatchdogConfig(TIMEOUT_S, aborts))


def test_a_rank_that_hangs_is_named_and_every_stack_is_there(data: Path, tmp_path: Path) -> None:
    of_rank_0, of_rank_1 = run(hang, 2, config_of(data, tmp_path))
    waiting, sleeping = ((tmp_path / "stacks" / f"rank_{rank}.txt").read_text() for rank in range(2))
    assert waiting.startswith("rank 0 waits at ")
    assert sleeping.startswith(f"rank 1 is at {__file__}:")
    for stack in (waiting, sleeping):
        assert stack.splitlines()[1].endswith("the last was save after step 2")
        assert "to_the_end" in stack
    assert f"rank 1 is at {__file__}" in of_rank_0
    assert "rank 0" not in of_rank_0
    assert "watchdog" not in of_rank_1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4  # it went on when rank 1 woke up


def test_a_hang_can_end_the_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="died without a word"):
        run(hang, 2, config_of(data, tmp_path, aborts=True))
    assert (tmp_path / "stacks" / "rank_0.txt").exists()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_slow_rank_is_named_once_an_interval(data: Path, tmp_path: Path) -> None:
    of_rank_0, of_rank_1 = run(slow_down, 2, config_of(data, tmp_path, report_interval=2, micro_batch_size=1))
    assert of_rank_0.count("slowest rank 1: forward ") == 2
    assert "slowest" not in of_rank_1
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record.get("slowest_rank") for record in records] == [None, 1, None, 1]
    report = records[3]
    assert report["slowest_ratio"] > 1
    assert report["forward_seconds"] >= 2 * SLOW_S  # two micro-batches
    assert report["max_memory_gib"] > 0
