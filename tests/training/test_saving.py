"""Saving while training goes on: what is written, when it counts, how it fails, and that a run resumes exactly."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.directories import complete_checkpoints, partial_checkpoints, step_of
from megatron_aqaa.checkpoint.shard_writer import ShardWriter, Written
from megatron_aqaa.checkpoint.store import unwrap
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.lm_state import TrainState, build_state
from megatron_aqaa.training.saving import CheckpointSaver
from megatron_aqaa.training.train import NextTokens, train
from tests.training.tiny_run import VOCABULARY, tiny_config


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps that were never stopped, each of them saved asynchronously."""
    run = tmp_path_factory.mktemp("straight")
    train(tiny_config(data, run, steps=6, save_interval=1, keep_checkpoints=9, async_save=True))
    return run


@contextmanager
def started(config: TrainConfig) -> Iterator[tuple[TrainState, NextTokens]]:
    platform.initialize(config.parallel, config.training.seed)
    try:
        state = build_state(config, VOCABULARY)
        yield state, NextTokens(config, state, VOCABULARY)
    finally:
        platform.shutdown()


def advance(state: TrainState, task: NextTokens, steps: int = 1) -> None:
    for _ in range(steps):
        task.step()
        state.scheduler.step(1)
        state.step += 1
        state.consumed_samples += task.config.training.global_batch_size


def steps_of(run: Path) -> list[int]:
    return [step_of(path) for path in complete_checkpoints(run)]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Writers in the background begin when this is set."""
    go = multiprocessing.get_context("fork").Event()
    write = ShardWriter.write

    def later(self: ShardWriter) -> Written:
        if multiprocessing.parent_process() is not None:
            go.wait()
        return write(self)

    monkeypatch.setattr(ShardWriter, "write", later)
    return go


def test_async_writes_what_sync_writes_though_training_goes_on_at_once(data: Path, tmp_path: Path, held: Event) -> None:
    config = tiny_config(data, tmp_path / "async", async_save=True)
    with started(config) as (state, task):
        advance(state, task)
        with CheckpointSaver(tiny_config(data, tmp_path / "sync"), state) as saver:
            saver.save(wait=False)
        weight = unwrap(state.model_chunks[0]).output_layer.weight
        before = weight.detach().clone()
        with CheckpointSaver(config, state) as saver:
            saver.save(wait=False)
            assert not complete_checkpoints(config.run)
            advance(state, task, 2)
            held.set()
        assert (before != weight).any()
        [written], [wanted] = complete_checkpoints(tmp_path / "async"), complete_checkpoints(tmp_path / "sync")
        for path in wanted.glob("*.distcp"):
            assert (written / path.name).read_bytes() == path.read_bytes()
        tensors = [dist_checkpointing.load_plain_tensors(str(path)) for path in (written, wanted)]
        common = [dist_checkpointing.load_common_state_dict(str(path)) for path in (written, wanted)]
    names = {name for name, value in tensors[1].items() if isinstance(value, torch.Tensor)}
    assert tensors[0].keys() == tensors[1].keys() and len(names) > 20
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in names)
    assert common[0] == common[1]
    assert common[0]["progress"] == {"step": 1, "consumed_samples": 4}


def writers() -> list[multiprocessing.process.BaseProcess]:
    """Processes that write; Megatron's own saves, in other tests of this process, leave a manager behind."""
    return [process for process in multiprocessing.active_children() if not process.name.startswith("SyncManager")]


def test_polling_finishes_a_save(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, async_save=True)
    with started(config) as (state, _), CheckpointSaver(config, state) as saver:
        saver.poll()
        saver.save(wait=False)
        deadline = time.monotonic() + 60
        while not complete_checkpoints(tmp_path) and time.monotonic() < deadline:
            saver.poll()
        assert steps_of(tmp_path) == [0]
        assert not writers()


def test_one_save_at_a_time_and_waiting_is_said(
    data: Path, tmp_path: Path, held: Event, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(data, tmp_path, async_save=True)
    with started(config) as (state, _), CheckpointSaver(config, state) as saver:
        saver.save(wait=False)
        state.step = 1
        signal.signal(signal.SIGALRM, lambda *_: held.set())
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        saver.save(wait=False)
        assert steps_of(tmp_path) == [0]
        saver.poll()
        state.step = 2
        saver.save(wait=True)
        assert steps_of(tmp_path) == [1, 2]
    assert "step_00000000: still being written at step 1, so training waits" in capsys.readouterr().err


def test_the_newest_and_every_mth_stay(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, keep_checkpoints=2, keep_every=3)
    with started(config) as (state, _), CheckpointSaver(config, state) as saver:
        for step in range(1, 9):
            state.step = step
            saver.save(wait=True)
    assert steps_of(tmp_path) == [3, 6, 7, 8]
    assert not partial_checkpoints(tmp_path)


@contextmanager
def full_disk(max_bytes: int) -> Iterator[None]:
    """As far as large files go."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def save_to_full_disk(saver: CheckpointSaver, wait: bool) -> None:
    with full_disk(100_000):
        saver.save(wait=wait)
    while True:
        saver.poll()


@pytest.mark.parametrize("wait", [True, False])
def test_a_failed_save_names_rank_file_and_cause_and_the_next_one_works(data: Path, tmp_path: Path, wait: bool) -> None:
    config = tiny_config(data, tmp_path, async_save=True)
    with started(config) as (state, _), CheckpointSaver(config, state) as saver:
        saver.save(wait=True)
        state.step = 7
        message = (
            r"step_00000007: could not be written: rank 0: .*File too large.*__0_0\.distcp.*newest.* is step_00000000"
        )
        with pytest.raises(OSError, match=message):
            save_to_full_disk(saver, wait)
        assert steps_of(tmp_path) == [0] and not partial_checkpoints(tmp_path)
        saver.save(wait=True)
        assert steps_of(tmp_path) == [0, 7]


def test_a_killed_writer_is_an_error(data: Path, tmp_path: Path, held: Event) -> None:
    config = tiny_config(data, tmp_path, async_save=True)
    with started(config) as (state, _), CheckpointSaver(config, state) as saver:
        saver.save(wait=False)
        [writer] = writers()
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        with pytest.raises(
            OSError, match="rank 0: the process that writes ended with SIGKILL. There is no checkpoint yet"
        ):
            saver.save(wait=True)
    assert not complete_checkpoints(tmp_path)


def save_and_raise(config: TrainConfig, state: TrainState, error: BaseException) -> None:
    with CheckpointSaver(config, state) as saver:
        saver.save(wait=False)
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_what_stops_all_ranks_alike_waits_for_the_save(data: Path, tmp_path: Path, error: type[BaseException]) -> None:
    config = tiny_config(data, tmp_path, async_save=True)
    with started(config) as (state, _), pytest.raises(error):
        save_and_raise(config, state, error())
    assert steps_of(tmp_path) == [0]


def test_another_error_abandons_the_save_and_the_next_run_clears_it(data: Path, tmp_path: Path, held: Event) -> None:
    config = tiny_config(data, tmp_path, async_save=True)
    with started(config) as (state, _), pytest.raises(RuntimeError, match="torn"):
        save_and_raise(config, state, RuntimeError("torn"))
    assert not writers()
    assert not complete_checkpoints(tmp_path) and len(partial_checkpoints(tmp_path)) == 1
    with started(config) as (state, _), CheckpointSaver(config, state):
        pass
    assert not partial_checkpoints(tmp_path)


def test_a_checkpoint_of_the_same_step_is_replaced(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path)
    with started(config) as (state, task), CheckpointSaver(config, state) as saver:
        saver.save(wait=True)
        first = (tmp_path / "checkpoints" / "step_00000000" / "checksums.json").read_text()
        advance(state, task, 2)
        state.step = 0
        saver.save(wait=True)
    assert steps_of(tmp_path) == [0]
    assert (tmp_path / "checkpoints" / "step_00000000" / "checksums.json").read_text() != first
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000000"]


def logged(run: Path) -> dict[int, list[float]]:
    """Loss and gradient norm by step."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {record["step"]: [record["loss"], record["grad_norm"], record["learning_rate"]] for record in records}


@pytest.mark.parametrize("at", [2, 3])
def test_three_steps_from_an_async_checkpoint_are_exact(data: Path, straight: Path, tmp_path: Path, at: int) -> None:
    checkpoint = straight / "checkpoints" / f"step_{at:08d}"
    shutil.copytree(checkpoint, tmp_path / "checkpoints" / checkpoint.name)
    train(tiny_config(data, tmp_path, steps=6))
    wanted = logged(straight)
    assert len(wanted) == 6
    assert logged(tmp_path) == {step: wanted[step] for step in range(at + 1, 7)}


def test_a_damaged_checkpoint_is_passed_over_and_the_losses_are_the_same(
    data: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (3, 4):
        name = f"step_{step:08d}"
        shutil.copytree(straight / "checkpoints" / name, tmp_path / "checkpoints" / name)
    path = tmp_path / "checkpoints" / "step_00000004" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="step_00000004: damaged: __0_0.distcp is not what was written"):
        train(tiny_config(data, tmp_path / "other", init_from=path.parent))
    train(tiny_config(data, tmp_path, steps=6, save_interval=3))
    assert "step_00000004: damaged: __0_0.distcp is not what was written" in capsys.readouterr().err
    assert logged(tmp_path) == {step: values for step, values in logged(straight).items() if step > 3}
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step_00000003", "step_00000006"]
