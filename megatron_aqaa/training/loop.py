"""The training loop: pre-training, SFT and preference optimization differ by the task that it is handed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from megatron.core import parallel_state

from megatron_aqaa import platform
from megatron_aqaa.config import save_config
from megatron_aqaa.training.lm_config import LoopConfig, TrainConfig
from megatron_aqaa.training.lm_state import TrainState, build_state
from megatron_aqaa.training.optimizer import backbone_learning_rate
from megatron_aqaa.training.progress import Progress
from megatron_aqaa.training.stop import StopRequest
from megatron_aqaa.vocabulary import Vocabulary


class Result(Protocol):
    """What one step reports; the same on every rank."""

    @property
    def loss(self) -> float:
        """As minimised."""

    @property
    def grad_norm(self) -> float:
        """Before clipping."""

    @property
    def values(self) -> dict[str, float]:
        """What is logged beside these."""


class Task(Protocol):
    """What a run learns: its data and its step."""

    @property
    def validates_at_start(self) -> bool:
        """Also look at the held-out data before the first step."""

    def step(self) -> Result:
        """One optimizer step on the next global batch."""

    def validation(self) -> dict[str, float]:
        """Values on the held-out data, under the names that they are logged by."""


C = TypeVar("C", bound=TrainConfig)
MakeTask = Callable[[C, TrainState, Vocabulary], Task]


def run(config: C, make_task: MakeTask[C]) -> None:
    """Run `config` to its end; start it under torchrun for several ranks, or plainly for one.

    A run that was stopped continues at its newest complete checkpoint. SIGINT, SIGTERM and SIGUSR1 finish the
    step, save, and return by `KeyboardInterrupt`.

    Raises:
        ValueError: settings, data or checkpoints that do not fit together.
        FloatingPointError: the loss is NaN or infinite.
        KeyboardInterrupt: stopped by a signal, after saving.
    """
    platform.initialize(config.parallel, config.training.seed)
    try:
        vocabulary = Vocabulary.load(config.vocabulary)
        num_microbatches(config.training)
        state = build_state(config, vocabulary)
        task = make_task(config, state, vocabulary)
        _write_settings(config)
        _loop(config, state, task)
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
    value = torch.tensor(int(flag), device=platform.device())
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return bool(value.item())


def _loop(config: TrainConfig, state: TrainState, task: Task) -> None:
    loop = config.training
    with StopRequest() as stop, _progress(config, state.step) as progress:
        if config.data.validation and state.step == 0 and task.validates_at_start:
            progress.log({"step": 0, **task.validation()})
        while state.step < loop.steps:
            started_s = time.monotonic()
            result = task.step()
            learning_rate = backbone_learning_rate(state.optimizer)
            state.scheduler.step(1)
            state.step += 1
            state.consumed_samples += loop.global_batch_size
            _report(progress, state.step, result, learning_rate, time.monotonic() - started_s, config)
            if config.data.validation and (state.step % loop.validation_interval == 0 or state.step == loop.steps):
                progress.log({"step": state.step, **task.validation()})
            stopping = any_rank(stop.requested)
            if stopping or state.step % loop.save_interval == 0 or state.step == loop.steps:
                state.save(config.run, loop.keep_checkpoints)
            if stopping:
                raise KeyboardInterrupt(f"stopped at step {state.step}, saved; run the same command to continue")


def _progress(config: TrainConfig, step: int) -> Progress:
    writes = torch.distributed.get_rank() == 0
    log_path = config.run / "log.jsonl" if writes else None
    return Progress(config.run.name, config.training.steps, step, log_path, silent=not writes)


def _report(progress: Progress, step: int, result: Result, rate: float, seconds: float, config: TrainConfig) -> None:
    tokens_per_second = config.training.global_batch_size * config.data.sequence_length / seconds
    progress.update(step, loss=result.loss, **result.values, tokens_per_second=tokens_per_second)
    record = {"step": step, "loss": result.loss, **result.values, "grad_norm": result.grad_norm, "learning_rate": rate}
    progress.log({**record, "tokens_per_second": tokens_per_second, "seconds": seconds})
    if result.loss != result.loss or result.loss == float("inf"):
        raise FloatingPointError(f"loss {result.loss} at step {step}: lower optimizer.learning_rate or check the data")


def _write_settings(config: TrainConfig) -> None:
    """Keep the resolved configuration beside the checkpoints."""
    if torch.distributed.get_rank() == 0:
        Path(config.run).mkdir(parents=True, exist_ok=True)
        save_config(config, config.run / "config.yaml")
