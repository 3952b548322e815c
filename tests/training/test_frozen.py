"""Frozen parts stay to the last bit and out of the gradient norm; `tests/distributed` has the layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.store import unwrap
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.frozen import Frozen, freeze_backbone, text_spans
from megatron_aqaa.training.lm_batch import group_positions
from megatron_aqaa.training.lm_state import TrainState, new_state
from megatron_aqaa.training.lm_step import Batch, train_step
from megatron_aqaa.training.optimizer import OptimizerConfig
from megatron_aqaa.vocabulary import TEXT
from tests.model.sizes import VOCABULARY, variant

# no warm-up, strong decay, no clipping: a row that can move does
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2, embedding_rate_multiplier=5.0, weight_decay=0.5, clip_grad=0.0, decay_style="constant"
)
TABLES = ("embedding.word_embeddings.weight", "output_layer.weight")


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    platform.initialize(ParallelConfig(), seed=0)
    yield
    platform.shutdown()


def batch() -> Batch:
    ids = torch.randint(0, VOCABULARY.size, (2, 33), generator=torch.Generator().manual_seed(1))
    return {
        "token_ids": ids[:, :-1],
        "labels": ids[:, 1:],
        "loss_mask": torch.ones(2, 32),
        "document_ids": torch.zeros(2, 32, dtype=torch.int64),
        "group_positions": group_positions(ids[:, :-1], VOCABULARY),
    }


def started(frozen: tuple[Frozen, ...], **changes: object) -> TrainState:
    torch.manual_seed(3)
    model = variant(codebook_type_embedding=True, group_position_embedding=True, **changes)
    return new_state(model, VOCABULARY, ParallelConfig(), OPTIMIZER, steps=100, frozen=frozen)


def step(state: TrainState) -> float:
    """One step; the gradient norm."""
    result = train_step(state.model_chunks, state.optimizer, [iter([batch()])], VOCABULARY, 1, (2, 32))
    state.scheduler.step(1)
    return result.grad_norm


def weights(state: TrainState) -> dict[str, Tensor]:
    named = unwrap(state.model_chunks[0]).named_parameters()
    return {name: weight.detach().clone() for name, weight in named}


def changed_rows(before: Tensor, after: Tensor) -> list[int]:
    return (before != after).reshape(len(before), -1).any(1).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("untied", [True, False], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_text_rows_stay_and_all_else_learns(dtype: str, untied: bool) -> None:
    state = started(("text_rows",), params_dtype=dtype, untie_embeddings_and_output_weights=untied)
    before = weights(state)
    for _ in range(10):
        step(state)
    after = weights(state)
    rows = {name: changed_rows(before[name], after[name]) for name in before}
    scored = list(range(VOCABULARY.text_size, VOCABULARY.size))
    read = sorted({token_id for token_id in batch()["token_ids"].flatten().tolist() if token_id in scored})
    assert rows.pop(TABLES[0]) == (read if untied else scored)
    assert rows.pop(TABLES[1], scored) == scored
    assert rows.pop("embedding.codebook_type") == [1, 2]
    assert all(rows.values())


def test_with_the_backbone_frozen_only_audio_rows_and_small_tables_learn() -> None:
    state = started(("backbone", "text_rows"))
    before = weights(state)
    for _ in range(3):
        step(state)
    after = weights(state)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {*TABLES, "embedding.codebook_type", "embedding.group_position"}
    for name in TABLES:
        assert min(changed_rows(before[name], after[name])) >= VOCABULARY.text_size


def test_a_frozen_backbone_has_no_buffers() -> None:
    state = started(("backbone",))
    held = {name for name, p in unwrap(state.model_chunks[0]).named_parameters() if hasattr(p, "main_grad")}
    assert held == {*TABLES, "embedding.codebook_type", "embedding.group_position"}


def test_stages_with_nothing_to_train_are_refused() -> None:
    modules = [unwrap(chunk) for chunk in started(()).model_chunks]
    modules[0].config.pipeline_model_parallel_size = 3
    with pytest.raises(ValueError, match="pipeline_model_parallel_size = 3.*use at most 2 stages"):
        freeze_backbone(modules)


@pytest.mark.parametrize("frozen", [("text_rows",), ("backbone",), ("backbone", "text_rows")])
def test_frozen_parts_are_left_out_of_the_gradient_norm(frozen: tuple[Frozen, ...]) -> None:
    whole = started(())
    norm = step(whole)
    kept = 0.0
    for name, parameter in unwrap(whole.model_chunks[0]).named_parameters():
        gradient = parameter.main_grad.clone()
        if "text_rows" in frozen and name in TABLES:
            gradient[: VOCABULARY.text_size] = 0
        if "text_rows" in frozen and name == "embedding.codebook_type":
            gradient[TEXT] = 0
        is_table = name in TABLES or name.startswith("embedding.")
        kept += float(gradient.square().sum()) * (is_table or "backbone" not in frozen)
    assert step(started(frozen)) == pytest.approx(kept**0.5, rel=1e-5)
    assert kept**0.5 < 0.99 * norm


def test_audio_markers_among_the_text_ids_are_no_text_rows() -> None:
    assert text_spans(VOCABULARY) == [(0, 60)]
    reserved = dataclasses.replace(VOCABULARY, audio_start=20, audio_end=21)
    assert text_spans(reserved) == [(0, 20), (22, 60)]
    assert text_spans(dataclasses.replace(VOCABULARY, audio_start=59, audio_end=7)) == [(0, 7), (8, 59)]
