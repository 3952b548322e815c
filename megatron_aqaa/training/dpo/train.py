"""Preference optimization of the language model: the task that the training loop is handed."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch

from megatron_aqaa.checkpoint.agreement import from_rank_zero
from megatron_aqaa.checkpoint.store import require_checkpoint
from megatron_aqaa.data.preferences import PairRows, PreferencePairs
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from megatron_aqaa.training.dpo.reference import (
    PrecomputedReference,
    Reference,
    ReferenceWeights,
    SwappedReference,
    keep_identity,
    precomputed_table,
)
from megatron_aqaa.training.dpo.reference_cache import identity_key, table_key
from megatron_aqaa.training.dpo.step import DPOResult, dpo_step, dpo_validation
from megatron_aqaa.training.lm_batch import micro_batches
from megatron_aqaa.training.lm_state import TrainState
from megatron_aqaa.training.loop import num_microbatches, run
from megatron_aqaa.training.monitoring.guards import Judge, always
from megatron_aqaa.training.schedule import Window
from megatron_aqaa.vocabulary import Vocabulary

_NOISE = {"fp32": 1e-4, "bf16": 2e-2}
"""Log-probability of a token, between two passes over it at other layouts or with other neighbours in the row; at most.
bf16 in the miniature: .003 between one process and tensor parallelism over two (2026-11)."""


def train_dpo(config: DPOTrainConfig) -> None:
    """Run `config` to its end, see `megatron_aqaa.training.loop.run`."""
    run(config, PreferenceOptimization)


class PreferenceOptimization:
    """The task of preferring the chosen answer of every pair.

    Raises:
        ValueError: data, checkpoint or reference log-probabilities do not fit; as they say.
        KeyboardInterrupt: stopped while reference log-probabilities were computed, which are kept.
    """

    validates_at_start = True

    def __init__(self, config: DPOTrainConfig, state: TrainState, vocabulary: Vocabulary) -> None:
        self.config, self.state, self.vocabulary = config, state, vocabulary
        self.shape = (config.training.micro_batch_size, config.data.sequence_length)
        self.num_microbatches = num_microbatches(config.training)
        loop = config.training
        self.pairs = {name: self._pairs(names) for name, names in self._sources().items()}
        self._record_counts()
        train = self.pairs["train"]
        self.rows = PairRows(train, train.used, loop.seed, loop.steps * loop.global_batch_size)
        self.training_windows = self.windows(self.rows, state.consumed_samples)
        self.references = self._references()

    def step(self, judge: Judge = always) -> DPOResult:
        """One optimizer step on the next global batch.

        Raises:
            FloatingPointError: the first step, from the reference itself, does not give the value that it must have.
        """
        window = self.references["train"].attach(next(self.training_windows))
        result = dpo_step(self.state.model_chunks, self.state.optimizer, window, self.config.dpo, self.shape, judge)
        if self.state.step == 0 and self._starts_at_reference():
            check_first_step(result, self.config)
        return result

    def source(self, sequence: int) -> dict[str, Any]:
        """Pairs of training sequence `sequence`, numbered through the data sets."""
        data_sets = [str(prefix) for prefix in self.pairs["train"].prefixes]
        return {"data_sets": data_sets, "pairs": self.rows.packs[sequence].tolist()}

    def validation(self) -> dict[str, float]:
        """Means over all held-out pairs."""
        pairs, reference = self.pairs["validation"], self.references["validation"]
        rows = PairRows(pairs, pairs.used, seed=0, multiple_of=self.config.training.global_batch_size)
        windows = map(reference.attach, self.windows(rows))
        result = dpo_validation(self.state.model_chunks, windows, self.config.dpo, self.shape)
        return {f"validation_{name}": value for name, value in {"loss": result.loss, **result.values}.items()}

    def windows(self, rows: PairRows, consumed_samples: int = 0) -> Iterator[Window]:
        """Global batches of `rows` from a data position on."""
        iterators = [
            micro_batches(
                rows,
                self.vocabulary,
                with_group_positions=self.config.model.group_position_embedding,
                micro_batch_size=self.shape[0],
                num_microbatches=self.num_microbatches,
                consumed_samples=consumed_samples,
            )
            for _ in self.state.model_chunks
        ]
        while (window := [list(islice(own, self.num_microbatches)) for own in iterators])[0]:
            yield window

    def _sources(self) -> dict[str, list[str]]:
        data = self.config.data
        held_out = {"validation": list(data.validation)} if data.validation else {}
        return {"train": list(data.train), **held_out}

    def _pairs(self, names: list[str]) -> PreferencePairs:
        data, dpo = self.config.data, self.config.dpo
        prefixes = [data.directory / name for name in names]
        return PreferencePairs(prefixes, self.vocabulary, data.sequence_length, dpo.loss_mask, dpo.nll_targets)

    def _record_counts(self) -> None:
        if torch.distributed.get_rank():
            return
        counts = {name: dataclasses.asdict(pairs.counts) for name, pairs in self.pairs.items()}
        self.config.run.mkdir(parents=True, exist_ok=True)
        (self.config.run / "pairs.json").write_text(json.dumps(counts, indent=1) + "\n")
        for name, numbers in counts.items():
            print(f"{name}: {', '.join(f'{number} {what}' for what, number in numbers.items())} pairs", file=sys.stderr)

    def _references(self) -> dict[str, Reference]:
        config = self.config
        weights = functools.cache(lambda: ReferenceWeights(self.state.model_chunks, config.reference_checkpoint))
        if config.dpo.reference == "precomputed":
            return {name: self._precomputed(name, weights) for name in self.pairs}
        key = from_rank_zero(lambda: identity_key(config, self.vocabulary))
        keep_identity(config.run / "reference" / "weights.json", key)
        return dict.fromkeys(self.pairs, SwappedReference(weights(), self.shape))

    def _precomputed(self, name: str, weights: Callable[[], ReferenceWeights]) -> PrecomputedReference:
        pairs, path = self.pairs[name], self.config.run / "reference" / f"{name}.safetensors"
        key = from_rank_zero(lambda: table_key(self.config, self.vocabulary, pairs.prefixes))
        size = self.config.training.global_batch_size
        return PrecomputedReference(precomputed_table(path, key, pairs, weights, self.windows, self.shape, size))

    def _starts_at_reference(self) -> bool:
        start = self.config.training.init_from
        assert start is not None
        return require_checkpoint(start) == require_checkpoint(self.config.reference_checkpoint)


def check_first_step(result: DPOResult, config: DPOTrainConfig) -> None:
    """Raises FloatingPointError unless the loss has the value of a policy that is its own reference (ln 2, …).

    Log-probabilities may differ by what another layout or other neighbours in a row change in the last bits.
    """
    dpo, noise = config.dpo, _NOISE[config.model.params_dtype]
    expected = dpo.value_at_reference
    margin = noise * (2 if dpo.averages_over_tokens else result.tokens_per_pair)
    at_margins = dpo(torch.tensor([-margin, margin], dtype=torch.float64))
    tolerance = float((at_margins - expected).abs().max())
    if abs(result.preference_loss - expected) <= tolerance and result.distance <= noise:
        return
    raise FloatingPointError(
        f"step 1 starts from the reference itself, so {dpo.loss} must be {expected:.6g} (± {tolerance:.2g}), but it is "
        f"{result.preference_loss:.6g}; policy and reference differ by {result.distance:.2g} per token (at most "
        f"{noise:.2g} is noise). The reference log-probabilities are not those of training.init_from: delete "
        f"{config.run / 'reference'} to compute them anew; if that does not help, the model is not deterministic"
    )
