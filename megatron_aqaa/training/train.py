"""The language-model training loop: pre-training, SFT and what follows differ by data and settings alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from torch.utils.data import Dataset

from megatron_aqaa import platform
from megatron_aqaa.config import save_config
from megatron_aqaa.data.datasets import build_dataset, build_validation_dataset
from megatron_aqaa.training.lm_batch import micro_batches
from megatron_aqaa.training.lm_config import LoopConfig, TrainConfig
from megatron_aqaa.training.lm_state import TrainState, build_state
from megatron_aqaa.training.lm_step import Batch, StepResult, train_step, validation_step
from megatron_aqaa.training.optimizer import backbone_learning_rate
from megatron_aqaa.training.progress import Progress
from megatron_aqaa.training.stop import StopRequest
from megatron_aqaa.vocabulary import Vocabulary


def train(config: TrainConfig) -> None:
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
        num_microbatches = _num_microbatches(config.training)
        state = build_state(config, vocabulary)
        iterators = training_batches(config, state, vocabulary, num_microbatches)
        _write_settings(config)
        _loop(config, state, iterators, vocabulary, num_microbatches)
    finally:
        platform.shutdown()


def _loop(
    config: TrainConfig,
    state: TrainState,
    iterators: list[Iterator[Batch]],
    vocabulary: Vocabulary,
    num_microbatches: int,
) -> None:
    loop = config.training
    shape = (loop.micro_batch_size, config.data.sequence_length)
    with StopRequest() as stop, _progress(config, state.step) as progress:
        while state.step < loop.steps:
            started_s = time.monotonic()
            result = train_step(state.model_chunks, state.optimizer, iterators, vocabulary, num_microbatches, shape)
            learning_rate = backbone_learning_rate(state.optimizer)
            state.scheduler.step(1)
            state.step += 1
            state.consumed_samples += loop.global_batch_size
            _report(progress, state.step, result, learning_rate, time.monotonic() - started_s, loop, shape[1])
            if config.data.validation and (state.step % loop.validation_interval == 0 or state.step == loop.steps):
                progress.log({"step": state.step, **_validation_losses(config, state, vocabulary)})
            stopping = _any_rank(stop.requested)
            if stopping or state.step % loop.save_interval == 0 or state.step == loop.steps:
                state.save(config.run, loop.keep_checkpoints)
            if stopping:
                raise KeyboardInterrupt(f"stopped at step {state.step}, saved; run the same command to continue")


def _num_microbatches(loop: LoopConfig) -> int:
    per_pass = loop.micro_batch_size * parallel_state.get_data_parallel_world_size()
    if loop.global_batch_size % per_pass:
        raise ValueError(
            f"training.global_batch_size = {loop.global_batch_size} must be a multiple of micro_batch_size × "
            f"data-parallel size = {loop.micro_batch_size} × {parallel_state.get_data_parallel_world_size()}"
        )
    return loop.global_batch_size // per_pass


def training_batches(
    config: TrainConfig, state: TrainState, vocabulary: Vocabulary, num_microbatches: int
) -> list[Iterator[Batch]]:
    """Training micro-batches from the run's position on, an iterator for each virtual pipeline stage."""
    loop = config.training
    dataset = build_dataset(config.data, vocabulary, loop.steps * loop.global_batch_size, loop.seed)
    return _iterators(config, dataset, state, vocabulary, num_microbatches, state.consumed_samples)


def _iterators(
    config: TrainConfig,
    dataset: Dataset[Batch],
    state: TrainState,
    vocabulary: Vocabulary,
    num_microbatches: int,
    consumed_samples: int,
) -> list[Iterator[Batch]]:
    return [
        micro_batches(
            dataset,
            vocabulary,
            with_group_positions=config.model.group_position_embedding,
            micro_batch_size=config.training.micro_batch_size,
            num_microbatches=num_microbatches,
            consumed_samples=consumed_samples,
        )
        for _ in state.model_chunks
    ]


def _validation_losses(config: TrainConfig, state: TrainState, vocabulary: Vocabulary) -> dict[str, float]:
    """Mean losses over the held-out data, without the sequences that do not fill a last batch."""
    dataset = build_validation_dataset(config.data, vocabulary)
    micro_batch_size = config.training.micro_batch_size
    num_microbatches = len(dataset) // (micro_batch_size * parallel_state.get_data_parallel_world_size())  # type: ignore[arg-type]
    if num_microbatches == 0:
        raise ValueError(f"data.validation holds {len(dataset)} sequences, fewer than one micro-batch of each rank")  # type: ignore[arg-type]
    iterators = _iterators(config, dataset, state, vocabulary, num_microbatches, consumed_samples=0)
    shape = (micro_batch_size, config.data.sequence_length)
    result = validation_step(state.model_chunks, iterators, vocabulary, num_microbatches, shape)
    return {"validation_loss": result.loss, **{f"validation_loss_{k}": v for k, v in result.modality_losses.items()}}


def _progress(config: TrainConfig, step: int) -> Progress:
    writes = torch.distributed.get_rank() == 0
    log_path = config.run / "log.jsonl" if writes else None
    return Progress(config.run.name, config.training.steps, step, log_path, silent=not writes)


def _report(
    progress: Progress, step: int, result: StepResult, rate: float, seconds: float, loop: LoopConfig, length: int
) -> None:
    losses: dict[str, Any] = {f"loss_{name}": value for name, value in result.modality_losses.items()}
    tokens_per_second = loop.global_batch_size * length / seconds
    progress.update(step, loss=result.loss, **losses, tokens_per_second=tokens_per_second)
    record = {"step": step, "loss": result.loss, **losses, "grad_norm": result.grad_norm, "learning_rate": rate}
    progress.log({**record, "tokens_per_second": tokens_per_second, "seconds": seconds})
    if result.loss != result.loss or result.loss == float("inf"):
        raise FloatingPointError(f"loss {result.loss} at step {step}: lower optimizer.learning_rate or check the data")


def _any_rank(flag: bool) -> bool:
    """True on every rank if `flag` is true on one: a signal may reach the ranks between different steps."""
    value = torch.tensor(int(flag), device=platform.device())
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return bool(value.item())


def _write_settings(config: TrainConfig) -> None:
    """Keep the resolved configuration beside the checkpoints."""
    if torch.distributed.get_rank() == 0:
        Path(config.run).mkdir(parents=True, exist_ok=True)
        save_config(config, config.run / "config.yaml")
