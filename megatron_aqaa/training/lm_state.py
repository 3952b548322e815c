"""Model, optimizer, schedule and position of a language-model run: built, saved, resumed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_aqaa.checkpoint import store
from megatron_aqaa.checkpoint.integrity import newest_intact, require_intact
from megatron_aqaa.checkpoint.optimizer_shards import LOADING_METADATA, optimizer_state
from megatron_aqaa.checkpoint.random_states import random_states, restore_random_states, stored_random_states
from megatron_aqaa.model import AQAAModel, ModelConfig, build_model
from megatron_aqaa.model.transformer_engine import start_tensor_overlap
from megatron_aqaa.model.vocabulary_growth import grow_tables
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.tokenizer.open import open_tokenizer
from megatron_aqaa.training.code_rows import initialise_code_rows
from megatron_aqaa.training.frozen import Frozen, finalize_without_text_rows, freeze_backbone
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.optimizer import OptimizerConfig, build_optimizer, build_scheduler, gather_weights
from megatron_aqaa.vocabulary import Vocabulary


@dataclass
class TrainState:
    """All that changes while a run trains.

    Attributes:
        model_chunks: DDP-wrapped models of this rank, one per virtual pipeline stage.
        optimizer: Megatron optimizer.
        scheduler: learning-rate schedule.
        step: optimizer steps done.
        consumed_samples: sequences read so far over all ranks; the data position.
    """

    model_chunks: list[Any]
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    step: int = 0
    consumed_samples: int = 0

    def sharded(self) -> dict[str, Any]:
        """Megatron sharded state dict of everything above and the random states: views, nothing is copied."""
        gather_weights(self.model_chunks)
        state = store.model_state(self.model_chunks)
        state["optimizer"] = optimizer_state(self.optimizer, self._weights(state))
        state.update(random_states())
        return state | self._plain()

    def save(self, run: Path, keep: int) -> None:
        """Write a checkpoint of this step."""
        store.save_checkpoint(run, self.step, self.sharded(), keep)

    def load(self, checkpoint: Path) -> None:
        """Continue exactly where `checkpoint` was written, at this run's parallel layout."""
        state = store.model_state(self.model_chunks)
        state["optimizer"] = self.optimizer.sharded_state_dict(
            self._weights(state), is_loading=True, metadata=LOADING_METADATA
        )
        state.update(stored_random_states(checkpoint))
        loaded = store.load_checkpoint(checkpoint, state | self._plain())
        store.load_weights(self.model_chunks, loaded)
        self._load_optimizer(loaded["optimizer"], checkpoint)
        self.scheduler.load_state_dict(loaded["scheduler"])
        self.step = loaded["progress"]["step"]
        self.consumed_samples = loaded["progress"]["consumed_samples"]
        restore_random_states(loaded)

    def _weights(self, model_state: dict[str, Any]) -> dict[str, Any]:
        weights: dict[str, Any] = model_state["model"] if len(self.model_chunks) == 1 else model_state
        return weights

    def _plain(self) -> dict[str, Any]:
        """What every rank knows."""
        return {
            **store.vocabulary_state(self.model_chunks),
            "scheduler": self.scheduler.state_dict(),
            "progress": {"step": self.step, "consumed_samples": self.consumed_samples},
        }

    def _load_optimizer(self, loaded: Any, checkpoint: Path) -> None:
        try:
            self.optimizer.load_state_dict(loaded)
        except KeyError as error:  # Megatron looks groups up by what sets them apart
            raise ValueError(
                f"{checkpoint}: has no parameter group {error}: training.frozen was another when it was written. Set "
                "it back, or start a new run from the weights with training.init_from"
            ) from error


def build_state(config: TrainConfig, vocabulary: Vocabulary) -> TrainState:
    """Build the run at its newest intact checkpoint, or at its start; all ranks call this.

    Raises:
        ValueError: every checkpoint of the run, or the one to start from, is damaged or does not fit.
    """
    if config.parallel.tp_comm_overlap:
        num_tokens = config.training.micro_batch_size * config.data.sequence_length
        fp8 = config.model.fp8 is not None
        start_tensor_overlap(config.parallel, config.model.hidden_size, num_tokens, fp8=fp8)
    resume_from = newest_intact(config.run)
    state = new_state(
        config.model,
        vocabulary,
        config.parallel,
        config.optimizer,
        config.training.steps,
        initialise=(lambda modules: None)
        if resume_from
        else (lambda modules: _initialise(modules, config, vocabulary)),
        frozen=config.training.frozen,
    )
    if resume_from is not None:
        state.load(resume_from)
    return state


def new_state(
    model: ModelConfig,
    vocabulary: Vocabulary,
    parallel: ParallelConfig,
    optimizer_config: OptimizerConfig,
    steps: int,
    initialise: Callable[[list[AQAAModel]], None] = lambda modules: None,
    frozen: Collection[Frozen] = (),
) -> TrainState:
    """Model, optimizer and schedule at step 0.

    Args:
        model: size and kind.
        vocabulary: id layout.
        parallel: the layout that `platform.initialize` was given.
        optimizer_config: learning rates and AdamW settings.
        steps: length of the schedule.
        initialise: changes the random initial weights, before the optimizer copies them.
        frozen: parts that stay as they are.
    """
    keep_text = "text_rows" in frozen
    modules = build_model(model, vocabulary, parallel)
    initialise(modules)
    if "backbone" in frozen:
        freeze_backbone(modules)
    chunks = _wrap(modules, parallel)
    optimizer = build_optimizer(chunks, optimizer_config, modules[0].config.params_dtype, decay_tables=not keep_text)
    finalize = finalize_without_text_rows(modules) if keep_text else finalize_model_grads
    modules[0].config.finalize_model_grads_func = finalize
    modules[0].config.grad_scale_func = optimizer.scale_loss
    return TrainState(chunks, optimizer, build_scheduler(optimizer, optimizer_config, steps))


def _wrap(modules: list[Any], parallel: ParallelConfig) -> list[Any]:
    """DDP around each chunk: fp32 gradient buffers, reduced across data-parallel ranks during backward."""
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=True,
    )
    chunks = [
        DistributedDataParallel(module.config, ddp_config, module, disable_bucketing=index > 0)
        for index, module in enumerate(modules)
    ]
    if parallel.overlap_grad_reduce:  # else the first micro-batch's gradients would be sent off before the others come
        no_sync = [chunk.no_sync for chunk in chunks]
        modules[0].config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    return chunks


def _initialise(modules: list[Any], config: TrainConfig, vocabulary: Vocabulary) -> None:
    loop = config.training
    if loop.init_from is not None:
        require_intact(store.require_checkpoint(loop.init_from))
    if loop.init_from is not None and loop.grow_vocabulary:
        store.load_text_model(modules, loop.init_from)
        for module in modules:
            grow_tables(module, vocabulary, loop.seed)
    elif loop.init_from is not None:
        store.load_model(modules, loop.init_from)
    if config.training.code_vectors is not None:
        vectors = open_tokenizer(config.training.code_vectors).code_vectors()
        for module in modules:
            initialise_code_rows(module, vectors, vocabulary)
