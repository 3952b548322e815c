"""Times by their definitions, and the directions that they must move in."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_aqaa.planner.flops import audio_hours, model_flops_per_token
from megatron_aqaa.planner.layout import Layout
from megatron_aqaa.planner.plan import AQAA, MEGATRON, Batch, Plan, Software
from megatron_aqaa.planner.prediction import predict
from megatron_aqaa.planner.slice import Slice
from tests.planner.sizes import RELEASED_130B, SMALL, h100, small_plan

CLUSTER = h100()


def seconds(plan: Plan, software: Software = AQAA) -> float:
    return predict(plan, CLUSTER, software).time.total


def pipeline(ranks: int, virtual: int | None = None) -> Layout:
    return Layout(pipeline_model_parallel_size=ranks, virtual_pipeline_model_parallel_size=virtual)


def test_model_flops_are_six_per_weight_and_attention() -> None:
    weights = 131_946_590_208 - 74752 * 12288 - (2 * 88 + 1) * 12288  # without the embedding and the norms
    attention = 12 * 88 * 8192 * 12288
    assert model_flops_per_token(RELEASED_130B, 8192) == pytest.approx(6 * weights + attention)
    half = model_flops_per_token(RELEASED_130B, 8192, whole_attention=False)
    assert half == pytest.approx(6 * weights + attention / 2)


def test_a_gpt_has_the_operations_of_megatrons_formula() -> None:
    """Narayanan et al. 2021, equation 3, without recompute: 72 B s l h² (1 + s / 6h + V / 12lh)."""
    layers, hidden, length, vocabulary = 92, 10240, 4096, 131072
    gpt = dataclasses.replace(
        SMALL,
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=4 * hidden,
        num_attention_heads=80,
        num_query_groups=80,
        gated_linear_unit=False,
        vocab_size=vocabulary,
    )
    formula = 72 * layers * hidden**2 * (1 + length / (6 * hidden) + vocabulary / (12 * layers * hidden))
    assert model_flops_per_token(gpt, length) == pytest.approx(formula)


def test_an_hour_of_speech_is_150000_tokens() -> None:
    assert audio_hours(150_000) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rows", "columns", "inner", "teraflops"),
    [
        (4096, 4096, 4096, 783.3),
        (2048, 2048, 2048, 632.0),
        (1024, 1024, 4096, 470.1),
        (512, 4096, 4096, 644.1),
        (4096, 4096, 1024, 677.4),
    ],
)
def test_products_take_what_was_measured_of_single_ones(rows: int, columns: int, inner: int, teraflops: float) -> None:
    """The table that the overhead was read from, at the rate of a short burst: 794 TFLOP/s on 128 of 132 processors."""
    burst = dataclasses.replace(CLUSTER, sustained_tflops={"bf16": 819.0})
    part = Slice.of(small_plan(), burst, AQAA)
    predicted = 2 * rows * columns * inner / part.product_s(rows, columns, inner, 2) / 1e12
    assert predicted == pytest.approx(teraflops, rel=0.09)


def test_a_product_takes_whole_waves_of_tiles() -> None:
    part = Slice.of(small_plan(), dataclasses.replace(CLUSTER, num_processors=128), AQAA)
    one_wave = part.product_s(2048, 2048, 4096, 0)  # 128 tiles of 128 × 256
    assert one_wave == pytest.approx(2 * 2048 * 2048 * 4096 / 720e12 + 5.5e-6)
    assert part.product_s(2048, 1921, 4096, 0) == one_wave
    # 136 large tiles would need a second wave; 1088 of a quarter's size need nine of an eighth's work each, at .9.
    assert part.product_s(2048, 2049, 4096, 0) > 1.1 * one_wave


def test_the_parts_of_a_step_add_up() -> None:
    prediction = predict(small_plan(pipeline(4)), CLUSTER, AQAA)
    time = prediction.time
    assert time.total == pytest.approx(
        sum(time.rank.parts) + time.stages + time.bubble + time.slowest_gpu + time.data + time.optimizer
    )
    assert min(*time.rank.parts, time.stages, time.bubble, time.slowest_gpu, time.data, time.optimizer) >= 0
    assert prediction.tokens_per_second == pytest.approx(16 * 2048 / time.total)
    assert prediction.mfu == pytest.approx(
        model_flops_per_token(SMALL, 2048) * prediction.tokens_per_second / 8 / 989.4e12
    )
    assert prediction.tokens_per_day == pytest.approx(86400 * prediction.tokens_per_second)


def test_more_pipeline_ranks_have_more_bubble_and_virtual_stages_less() -> None:
    bubbles = [predict(small_plan(pipeline(ranks)), CLUSTER, AQAA).time.bubble for ranks in (1, 2, 4, 8)]
    shares = [
        bubble / seconds(small_plan(pipeline(ranks))) for bubble, ranks in zip(bubbles, (1, 2, 4, 8), strict=True)
    ]
    assert shares == sorted(set(shares)) and bubbles[0] == 0
    interleaved = predict(small_plan(pipeline(4, 2)), CLUSTER, AQAA).time.bubble
    assert interleaved < bubbles[2]


@pytest.mark.parametrize("recompute", ["attention", "mlp", "full"])
def test_recompute_costs_time(recompute: str) -> None:
    plan = small_plan()
    again = dataclasses.replace(plan, model=dataclasses.replace(plan.model, recompute=recompute))
    assert seconds(again) > seconds(plan)


def test_full_recompute_adds_one_forward_of_the_layers() -> None:
    plan = small_plan()
    again = dataclasses.replace(plan, model=dataclasses.replace(plan.model, recompute="full"))
    added = predict(again, CLUSTER, AQAA).time.rank.attention / predict(plan, CLUSTER, AQAA).time.rank.attention
    forward, backward = 1 / 306, 2.5 / 280
    assert added == pytest.approx((2 * forward + backward) / (forward + backward))


def test_overlap_and_fusion_save_time() -> None:
    plan = Plan.on(1024, RELEASED_130B, Layout(8, 8, 11, sequence_parallel=True), Batch(8192, 1, 1024))
    flags = dataclasses.replace(plan.layout, overlap_grad_reduce=True, overlap_param_gather=True)
    overlapped = dataclasses.replace(plan, layout=flags)
    assert seconds(overlapped) < seconds(plan)
    assert seconds(plan, dataclasses.replace(AQAA, fused_accumulation=True)) < seconds(plan)
    assert seconds(plan, MEGATRON) < seconds(plan)


def test_transfers_over_the_network_cost_more_than_over_nvlink() -> None:
    num_bytes = 1e9
    assert CLUSTER.collective_s(num_bytes, 8, 1) == pytest.approx(25e-6 + num_bytes * 7 / 8 / 360e9)
    assert CLUSTER.collective_s(num_bytes, 8, 8) == pytest.approx(80e-6 + num_bytes * 7 / 8 / 47e9)
    # A ring through whole nodes leaves each by all eight NICs, which NVLink then cannot feed.
    assert CLUSTER.collective_s(num_bytes, 64, 1) == pytest.approx(80e-6 + num_bytes * 63 / 64 / 360e9)
    assert CLUSTER.collective_s(num_bytes, 16, 4) == pytest.approx(80e-6 + num_bytes * 15 / 16 / 94e9)
    assert CLUSTER.collective_s(num_bytes, 1, 8) == 0


def test_eight_bit_products_are_faster() -> None:
    plan = small_plan(micro=4)
    quick = dataclasses.replace(plan, model=dataclasses.replace(plan.model, fp8="delayed"))
    assert seconds(quick) < seconds(plan)
