"""Predictions beside what others measured. No constant was fitted to these rows."""

from __future__ import annotations

import pytest

from megatron_aqaa.planner.cluster import load_cluster
from megatron_aqaa.planner.parameters import count_parameters
from megatron_aqaa.planner.plan import Plan
from megatron_aqaa.planner.prediction import predict
from megatron_aqaa.planner.published import (
    SOFTWARE,
    load_published,
    published_flops,
    published_plan,
    sensitivity,
)
from tests.planner.sizes import CLUSTERS, h100

TABLE = load_published(CLUSTERS / "published" / "megatron_lm_h100.yaml")
ROWS = {row.name: row for row in TABLE.rows}


def error(name: str) -> float:
    prediction = predict(published_plan(TABLE, ROWS[name]), h100(), SOFTWARE[TABLE.software])
    return prediction.flops_per_gpu / published_flops(ROWS[name], prediction) - 1


def test_the_119b_on_1536_gpus_is_predicted_within_a_tenth() -> None:
    assert abs(error("119B")) < 0.10


@pytest.mark.parametrize("name", ROWS)
def test_rows_have_the_size_that_their_name_says(name: str) -> None:
    """So the FFN form and the untied tables, which the table does not state, are right."""
    billions = count_parameters(published_plan(TABLE, ROWS[name]).model) / 1e9
    stated = float(name.removesuffix("B"))
    assert billions == pytest.approx(stated, abs=0.06 if stated < 10 else 0.6)


def test_the_119b_is_planned_as_published() -> None:
    plan = published_plan(TABLE, ROWS["119B"])
    assert (plan.num_gpus, plan.num_microbatches, plan.layout.label) == (1536, 16, "TP8 PP4×23 SP")


def test_every_unpublished_input_is_varied() -> None:
    names = [name for name, _ in sensitivity(published_plan(TABLE, ROWS["119B"]), h100(), SOFTWARE["megatron"])]
    assert names == [
        "1 virtual stages",
        "micro-batch 2",
        "micro-batch 4",
        "SwiGLU",
        "full recompute",
        "no biases",
        "8 query groups",
        "no DP overlap",
        "no TP overlap",
        "weight gradients not fused",
        "flex attention",
    ]


def test_step1_on_h800_is_planned() -> None:
    table = load_published(CLUSTERS / "published" / "step1_h800.yaml")
    plan = published_plan(table, table.rows[0])
    assert isinstance(plan, Plan) and count_parameters(plan.model) == 131_946_590_208
    prediction = predict(plan, load_cluster(CLUSTERS / "h800.yaml"), SOFTWARE[table.software])
    assert published_flops(table.rows[0], prediction) == pytest.approx(0.35 * 989.4e12)
    # 35 % is the average of months with stops; the plan is of one undisturbed step.
    assert 0.35 < prediction.mfu < 0.55
