"""The training loop: pre-training, SFT and preference optimization differ by the task that it is handed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from megatron.core import parallel_state

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.agreement import from_rank_zero
from megatron_aqaa.config import save_config
from megatron_aqaa.training.lm_config import LoopConfig, TrainConfig
from megatron_aqaa.training.lm_state import TrainState, build_state
from megatron_aqaa.training.monitoring.guards import Guards, Judge, agreed, always
from megatron_aqaa.training.monitoring.skipped import past_of, sequences_of_ranks, write_skipped
from megatron_aqaa.training.monitoring.telemetry import Result, Telemetry
from megatron_aqaa.training.monitoring.trackers import require_trackers
from megatron_aqaa.training.monitoring.watchdog import Watchdog
from megatron_aqaa.training.optimizer import backbone_learning_rate
from megatron_aqaa.training.saving import CheckpointSaver
from megatron_aqaa.training.stop import StopRequest
from megatron_aqaa.vocabulary import Vocabulary


class Task(Protocol):
    """What a run learns: its data and its step."""

    @property
    def validates_at_start(self) -> bool:
        """Also look at the held-out data before the first step."""

    def step(self, judge: Judge = always) -> Result:
        """One optimizer step on the next global batch, if the judge does not turn it down."""

    def validation(self) -> dict[str, float]:
        """Values on the held-out data, under the names that they are logged by."""

    def source(self, sequence: int) -> dict[str, Any]:
        """Where training sequence `sequence` of the run comes from, as plain values."""


C = TypeVar("C", bound=TrainConfig)
MakeTask = Callable[[C, TrainState, Vocabulary], Task]


def run(config: C, make_task: MakeTask[C]) -> None:
    """Run `config` to its end; start it under torchrun for several ranks, or plainly for one.

    A run that was stopped continues at its newest complete checkpoint. SIGINT, SIGTERM and SIGUSR1 finish the
    step, save, and return by `KeyboardInterrupt`.

    Raises:
        ValueError: settings, data or checkpoints that do not fit together.
        FloatingPointError: more steps were skipped than `guards` allows.
        KeyboardInterrupt: stopped by a signal, after saving.
    """
    platform.initialize(config.parallel, config.training.seed)
    try:
        vocabulary = Vocabulary.load(config.vocabulary)
        num_microbatches(config.training)
        require_trackers(config.training)
        state = build_state(config, vocabulary)
        task = make_task(config, state, vocabulary)
        _write_settings(config)
        to_the_end(config, state, task, vocabulary)
    finally:
        platform.shutdown()


def num_microbatches(loop: LoopConfig) -> int:
    """Micro-batches of this data-parallel rank in one step.

    Raises:
        ValueError: the global batch does not divide.
    """
    per_pass = loop.micro_batch_size * parallel_state.get_data_parallel_world_size()
    if loop.global_batch_size % per_pass:
        raise ValueError(
            f"training.global_batch_size = {loop.global_batch_size} must be a multiple of micro_batch_size × "
            f"data-parallel size = {loop.micro_batch_size} × {parallel_state.get_data_parallel_world_size()}"
        )
    return loop.global_batch_size // per_pass


def any_rank(flag: bool) -> bool:
    """True on every rank if `flag` is true on one: a signal may reach the ranks between different steps."""
    return agreed(flag)[0]


def to_the_end(config: TrainConfig, state: TrainState, task: Task, vocabulary: Vocabulary) -> None:
    """The steps that are left, on process groups that exist; raises as `run` does."""
    loop, validates = config.training, bool(config.data.validation)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    with (
        StopRequest() as stop,
        Telemetry(config, state, vocabulary) as telemetry,
        Watchdog(config.watchdog, config.run, rank, world_size) as watchdog,
        CheckpointSaver(config, state) as saver,
    ):
        guards = _guards(config, state.step, stop)
        if validates and state.step == 0 and task.validates_at_start:
            telemetry.validation(0, task.validation())
        while state.step < loop.steps:
            telemetry.begin()
            result = task.step(guards)
            learning_rate = backbone_learning_rate(state.optimizer)
            _advance(state, loop, result)
            telemetry.report(state.step, result, learning_rate, guards)
            watchdog.alive(f"step {state.step}")
            if guards.objection is not None:
                _keep_batch(telemetry, state, task, result, guards)
                guards.give_up_at_limit(state.step)
            is_last = state.step == loop.steps
            if validates and (is_last or state.step % loop.validation_interval == 0):
                telemetry.validation(state.step, task.validation())
                watchdog.alive(f"validation after step {state.step}")
            saver.poll()
            if guards.stopping or is_last or state.step % loop.save_interval == 0:
                saver.save(wait=guards.stopping or is_last)
                watchdog.alive(f"save after step {state.step}")
            if guards.stopping:
                raise KeyboardInterrupt(f"stopped at step {state.step}, saved; run the same command to continue")


def _advance(state: TrainState, loop: LoopConfig, result: Result) -> None:
    """A step that was skipped counts as a step, and its data as read; the learning rate stays where it was."""
    if result.updated:
        state.scheduler.step(1)
    state.step += 1
    state.consumed_samples += loop.global_batch_size


def _guards(config: TrainConfig, step: int, stop: StopRequest) -> Guards:
    """With what the run's log says of earlier sessions."""
    past = from_rank_zero(lambda: past_of(config.run / "log.jsonl", step, config.guards.spike_window))
    return Guards(config.guards, lambda: stop.requested, past)


def _keep_batch(telemetry: Telemetry, state: TrainState, task: Task, result: Result, guards: Guards) -> None:
    """Write down which documents a skipped step read."""
    if torch.distributed.get_rank():
        return
    loop, num_ranks = telemetry.config.training, parallel_state.get_data_parallel_world_size()
    first = state.consumed_samples - loop.global_batch_size
    ranks = sequences_of_ranks(first, loop.global_batch_size, loop.micro_batch_size, num_ranks)
    facts = {"reason": guards.objection, "loss": result.loss, "grad_norm": result.grad_norm}
    path = write_skipped(telemetry.config.run, state.step, facts, ranks, task)
    telemetry.progress.note(f"step {state.step} skipped: {guards.objection}; what it read: {path}")


def _write_settings(config: TrainConfig) -> None:
    """Keep the resolved configuration beside the checkpoints."""
    if torch.distributed.get_rank() == 0:
        Path(config.run).mkdir(parents=True, exist_ok=True)
        save_config(config, config.run / "config.yaml")
