"""Every layout gives the loss and gradient norm of one process, two steps on from a resharded checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing, parallel_state

from megatron_aqaa import platform
from megatron_aqaa.checkpoint import store
from megatron_aqaa.model import ModelConfig
from megatron_aqaa.ops import positions_in_group
from megatron_aqaa.platform import ParallelConfig, zigzag_shard
from megatron_aqaa.training.lm_state import TrainState, new_state
from megatron_aqaa.training.lm_step import Batch, StepResult, train_step
from megatron_aqaa.training.optimizer import OptimizerConfig
from megatron_aqaa.vocabulary import Vocabulary
from tests.distributed.launch import run
from tests.distributed.layouts import OF_FOUR, OF_TWO, SAVED, Runs

pytestmark = pytest.mark.distributed

VOCABULARY = Vocabulary(text_size=60, linguistic_size=16, semantic_size=32, size=110, audio_start=108, audio_end=109)
MODEL = ModelConfig(
    num_layers=4,
    hidden_size=48,
    ffn_hidden_size=64,
    num_attention_heads=12,
    num_query_groups=2,
    kv_channels=8,
    codebook_type_embedding=True,
    group_position_embedding=True,
    params_dtype="fp32",
)
LLAMA = dataclasses.replace(
    MODEL,
    position_embedding="rope",
    untie_embeddings_and_output_weights=False,
    group_position_embedding=False,
    recompute="full",
    recompute_logits=True,
)
# without small tables: under overlap, nothing else makes the embedding wait for its rows
PLAIN = dataclasses.replace(
    LLAMA, codebook_type_embedding=False, untie_embeddings_and_output_weights=True, recompute="mlp"
)
MODELS = {"step1": MODEL, "llama": LLAMA, "plain": PLAIN}
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, embedding_rate_multiplier=5.0, clip_grad=0.5)
BATCH, MICRO_BATCH, LENGTH = 8, 2, 32
STEPS_BEFORE, STEPS_AFTER = 2, 2

Trace = list[tuple[float, float, dict[str, float]]]
"""Loss, gradient norm and losses by modality of each step."""


def global_batch(step: int) -> Batch:
    """[BATCH, LENGTH]: packed documents, padding, whole-number weights of which more than half are zero."""
    random = torch.Generator().manual_seed(step)
    ids = torch.randint(0, VOCABULARY.size, (BATCH, LENGTH + 1), generator=random)
    document_ids = torch.randint(0, 2, (BATCH, LENGTH), generator=random).cumsum(1) // 6
    document_ids[::2, -5:] = -1
    loss_mask = torch.randint(0, 3, (BATCH, LENGTH), generator=random).float() * (document_ids >= 0)
    loss_mask *= torch.rand(BATCH, LENGTH, generator=random) < 0.6
    loss_mask[:MICRO_BATCH, : LENGTH // 2] = 0  # some micro-batches have few targets
    token_ids = ids[:, :-1].contiguous()
    positions = positions_in_group(token_ids, VOCABULARY.linguistic_start, VOCABULARY.audio_stop)
    return {
        "token_ids": token_ids,
        "labels": ids[:, 1:].contiguous(),
        "loss_mask": loss_mask,
        "document_ids": document_ids,
        "group_positions": positions,
    }


def micro_batches(step: int) -> Iterator[Batch]:
    """This rank's micro-batches of a step, cut for context parallelism."""
    batch = global_batch(step)
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    cp_rank, cp_size = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    for start in range(rank * MICRO_BATCH, BATCH, size * MICRO_BATCH):
        rows = {name: value[start : start + MICRO_BATCH] for name, value in batch.items()}
        yield {
            name: value if name == "document_ids" else zigzag_shard(value, 1, cp_rank, cp_size)
            for name, value in rows.items()
        }


def fresh(model: ModelConfig, layout: ParallelConfig, seed: int) -> TrainState:
    """A new run at `layout`; equal weights can only come from a checkpoint."""
    platform.initialize(layout, seed)
    return new_state(model, VOCABULARY, layout, OPTIMIZER, steps=100)


def train(state: TrainState, steps: int) -> Trace:
    trace = []
    num_microbatches = BATCH // MICRO_BATCH // parallel_state.get_data_parallel_world_size()
    for _ in range(steps):
        batches = [micro_batches(state.step) for _ in state.model_chunks]
        result: StepResult = train_step(
            state.model_chunks, state.optimizer, batches, VOCABULARY, num_microbatches, (MICRO_BATCH, LENGTH)
        )
        state.scheduler.step(1)
        state.step += 1
        trace.append((result.loss, result.grad_norm, result.modality_losses))
    return trace


def continued(folder: Path, runs: Runs) -> dict[str, Trace]:
    """On one rank: each layout from the checkpoint of the one process."""
    traces = {}
    for seed, (name, (model, layout)) in enumerate(runs.items()):
        state = fresh(MODELS[model], layout, seed)
        state.load(store.require_checkpoint(folder / model))
        traces[name] = train(state, STEPS_AFTER)
        if name in SAVED:
            state.save(folder / SAVED[name], keep=1)
    return traces


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def serial(folder: Path) -> dict[str, Trace]:
    """What one process does after its checkpoint, for each model."""
    traces = {}
    for name, model in MODELS.items():
        state = fresh(model, ParallelConfig(), seed=77)
        train(state, STEPS_BEFORE)
        state.save(folder / name, keep=1)
        traces[name] = train(state, STEPS_AFTER + 1)
    platform.shutdown()
    return traces


@pytest.fixture(scope="module")
def two(serial: dict[str, Trace], folder: Path) -> list[dict[str, Trace]]:
    return run(continued, 2, folder, OF_TWO)


@pytest.fixture(scope="module")
def four(serial: dict[str, Trace], folder: Path) -> list[dict[str, Trace]]:
    return run(continued, 4, folder, OF_FOUR)


def assert_equal(trace: Trace, expected: Trace) -> None:
    for (loss, norm, parts), (expected_loss, expected_norm, expected_parts) in zip(trace, expected, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-5)
        assert parts == pytest.approx(expected_parts, rel=1e-5)


@pytest.mark.parametrize("name", OF_TWO)
def test_two_processes(name: str, serial: dict[str, Trace], two: list[dict[str, Trace]]) -> None:
    for traces in two:
        assert_equal(traces[name], serial[OF_TWO[name][0]][:STEPS_AFTER])


@pytest.mark.parametrize("name", OF_FOUR)
def test_four_processes(name: str, serial: dict[str, Trace], four: list[dict[str, Trace]]) -> None:
    for traces in four:
        assert_equal(traces[name], serial[OF_FOUR[name][0]][:STEPS_AFTER])


def test_both_checkpoints_hold_the_weights_of_the_last_step(four: list[dict[str, Trace]], folder: Path) -> None:
    """Resuming would not show it: the optimizer's own copy makes up for stale weights."""
    platform.initialize(ParallelConfig())
    reversed_, overlapped = (
        dist_checkpointing.load_plain_tensors(str(store.require_checkpoint(folder / name))) for name in SAVED.values()
    )
    platform.shutdown()
    weights = {name for name, value in reversed_.items() if name.endswith("weight") and "optimizer" not in name}
    assert "embedding.word_embeddings.weight" in weights
    for name in weights:
        torch.testing.assert_close(overlapped[name], reversed_[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("saved", SAVED.values())
def test_one_process_continues_from_four(
    saved: str, serial: dict[str, Trace], four: list[dict[str, Trace]], folder: Path
) -> None:
    state = fresh(MODEL, ParallelConfig(), seed=5)
    state.load(store.require_checkpoint(folder / saved))
    trace = train(state, 1)
    platform.shutdown()
    assert_equal(trace, serial["step1"][STEPS_AFTER:])


def test_the_comparison_is_of_something(serial: dict[str, Trace]) -> None:
    (loss, norm, parts), (next_loss, _, _) = serial["step1"][:2]
    assert norm > OPTIMIZER.clip_grad  # so clipping is part of it
    assert abs(next_loss - loss) > 1e-2
    assert set(parts) == {"text", "linguistic", "semantic"}
