"""Pre-training and SFT of the language model: they differ by data and settings alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.core import parallel_state
from torch.utils.data import Dataset

from megatron_aqaa.data.datasets import build_dataset, build_validation_dataset
from megatron_aqaa.data.sources import source_of
from megatron_aqaa.training.lm_batch import micro_batches
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.lm_state import TrainState
from megatron_aqaa.training.lm_step import Batch, StepResult, train_step, validation_step
from megatron_aqaa.training.loop import num_microbatches, run
from megatron_aqaa.training.monitoring.guards import Judge, always
from megatron_aqaa.vocabulary import Vocabulary


def train(config: TrainConfig) -> None:
    """Run `config` to its end, see `megatron_aqaa.training.loop.run`."""
    run(config, NextTokens)


class NextTokens:
    """The task of predicting every target from what stands before it."""

    validates_at_start = False

    def __init__(self, config: TrainConfig, state: TrainState, vocabulary: Vocabulary) -> None:
        self.config, self.state, self.vocabulary = config, state, vocabulary
        self.shape = (config.training.micro_batch_size, config.data.sequence_length)
        self.num_microbatches = num_microbatches(config.training)
        self.dataset = training_set(config, vocabulary)
        self.batches = _iterators(
            config, self.dataset, state, vocabulary, self.num_microbatches, state.consumed_samples
        )

    def step(self, judge: Judge = always) -> StepResult:
        """One optimizer step on the next global batch."""
        state, count = self.state, self.num_microbatches
        return train_step(state.model_chunks, state.optimizer, self.batches, self.vocabulary, count, self.shape, judge)

    def source(self, sequence: int) -> dict[str, Any]:
        """Data set and documents of training sequence `sequence`."""
        return source_of(self.dataset, sequence)

    def validation(self) -> dict[str, float]:
        """Mean losses over the held-out data, without the sequences that do not fill a last batch."""
        dataset = build_validation_dataset(self.config.data, self.vocabulary)
        per_pass = self.shape[0] * parallel_state.get_data_parallel_world_size()
        count = len(dataset) // per_pass  # type: ignore[arg-type]
        if count == 0:
            raise ValueError(f"data.validation holds {len(dataset)} sequences, fewer than one micro-batch of each rank")  # type: ignore[arg-type]
        iterators = _iterators(self.config, dataset, self.state, self.vocabulary, count, consumed_samples=0)
        result = validation_step(self.state.model_chunks, iterators, self.vocabulary, count, self.shape)
        return {f"validation_{name}": value for name, value in {"loss": result.loss, **result.values}.items()}


def training_set(config: TrainConfig, vocabulary: Vocabulary) -> Dataset[Batch]:
    """The sequences of the whole run."""
    loop = config.training
    return build_dataset(config.data, vocabulary, loop.steps * loop.global_batch_size, loop.seed)


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
