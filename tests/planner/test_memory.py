"""Activations, logits and micro-batches in flight by their definitions."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_aqaa.planner.layout import Layout
from megatron_aqaa.planner.memory import in_flight, layer_bytes, logits_bytes, memory_by_rank, rank_memory
from megatron_aqaa.planner.plan import Plan
from megatron_aqaa.planner.schedule import order_of
from tests.planner.sizes import small_plan

H, F, QUERY, KEY_VALUE, HEADS = 1024, 2816, 1024, 512, 16
ROWS = 5376
LENGTH = 2048


def with_model(plan: Plan, **changes: object) -> Plan:
    return dataclasses.replace(plan, model=dataclasses.replace(plan.model, **changes))  # type: ignore[arg-type]


def pipeline(ranks: int, virtual: int | None = None) -> Layout:
    return Layout(pipeline_model_parallel_size=ranks, virtual_pipeline_model_parallel_size=virtual)


@pytest.mark.parametrize("micro", [1, 2])
def test_a_layer_keeps_its_tensors_and_no_square(micro: int) -> None:
    tokens = micro * LENGTH
    residual = 2 * tokens * H  # bf16: norm's input and output, twice
    attention = 2 * tokens * (QUERY + KEY_VALUE + QUERY) + 4 * tokens * HEADS  # q, k, v, output; log-sums in fp32
    ffn = 2 * tokens * 3 * F  # gate, up, their product
    assert layer_bytes(small_plan(micro=micro)) == 4 * residual + attention + ffn
    plan = small_plan(micro=micro)
    assert layer_bytes(with_model(plan, recompute="attention")) == 4 * residual + attention + ffn - 4 * tokens * HEADS
    assert layer_bytes(with_model(plan, recompute="mlp")) == 4 * residual + attention
    assert layer_bytes(with_model(plan, recompute="full")) == residual


def test_tensor_parallelism_cuts_attention_and_ffn_sequence_parallelism_the_rest() -> None:
    whole = layer_bytes(small_plan())
    residual = 4 * 2 * LENGTH * H
    assert layer_bytes(small_plan(Layout(4))) == residual + (whole - residual) // 4
    assert layer_bytes(small_plan(Layout(4, sequence_parallel=True))) == whole // 4


def test_context_parallelism_cuts_all_but_gathered_keys_and_values() -> None:
    gathered = 2 * LENGTH * KEY_VALUE
    assert layer_bytes(small_plan(Layout(context_parallel_size=2))) == layer_bytes(small_plan()) // 2 + gathered // 2


def test_logits_are_kept_probabilities_and_a_block_or_a_block_alone() -> None:
    plan = small_plan()
    block = 2 * 4 * LENGTH * ROWS  # fewer than a block holds
    assert logits_bytes(plan) == 2 * LENGTH * H + 4 * LENGTH * H + block + 2 * LENGTH * ROWS
    assert logits_bytes(with_model(plan, recompute_logits=True)) == 2 * LENGTH * H + 4 * LENGTH * H + block
    wide = with_model(plan, vocab_size=1 << 20, recompute_logits=True)
    assert logits_bytes(wide) == 6 * LENGTH * H + 2 * 4 * (1 << 26)


@pytest.mark.parametrize(
    ("ranks", "virtual", "batch"), [(4, None, 16), (4, None, 4), (2, 2, 16), (4, 2, 16), (2, 4, 4)]
)
def test_micro_batches_in_flight_are_those_of_the_schedule(ranks: int, virtual: int | None, batch: int) -> None:
    plan = small_plan(pipeline(ranks, virtual), batch=batch)
    chunks = virtual or 1
    for rank in range(ranks):
        held, most = [0] * chunks, [0] * chunks
        for work in order_of(rank, ranks, chunks, plan.num_microbatches):
            held[work.chunk] += -1 if work.backward else 1
            if sum(held) > sum(most):
                most = list(held)
        assert in_flight(plan, rank) == most


def test_only_the_last_rank_holds_logits_and_both_ends_a_table() -> None:
    first, *middle, last = memory_by_rank(small_plan(pipeline(4)))
    assert last.logits > 0 and first.logits == 0 and not any(rank.logits for rank in middle)
    table = ROWS * H
    for rank in middle:
        assert first.gradients - rank.gradients == 4 * table
        assert last.gradients - rank.gradients == 4 * (table + H)  # and the final norm


def test_the_first_rank_keeps_most_activations() -> None:
    sizes = [rank.activations for rank in memory_by_rank(small_plan(pipeline(4)))]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 4 * sizes[-1]


def test_more_copies_share_the_optimizer() -> None:
    alone, shared = (small_plan(data_parallel_size=size) for size in (1, 8))
    assert rank_memory(alone, 0).optimizer == pytest.approx(8 * rank_memory(shared, 0).optimizer, rel=1e-4)
    assert rank_memory(alone, 0).gradients == rank_memory(shared, 0).gradients


def test_the_parts_add_up() -> None:
    memory = rank_memory(small_plan(), 0)
    assert memory.total == sum(dataclasses.astuple(memory))
