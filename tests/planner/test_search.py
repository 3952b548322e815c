"""The search finds the fastest plan that fits, and says why others lose."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from megatron_aqaa.planner.layout import Layout
from megatron_aqaa.planner.pipelines import compare_pipelines
from megatron_aqaa.planner.plan import AQAA, Batch, Plan
from megatron_aqaa.planner.prediction import predict
from megatron_aqaa.planner.reasons import fit, losses, misfit_reason, reason
from megatron_aqaa.planner.search import plans, search
from tests.planner.sizes import RELEASED_130B, SMALL, h100

CLUSTER = h100()
BATCH = Batch(2048, 1, 32)


def test_the_best_is_the_fastest_of_all_that_fit() -> None:
    small_memory = dataclasses.replace(CLUSTER, memory_gib=4.5)
    found = search(16, SMALL, Layout(), BATCH, small_memory, AQAA)
    fitting = [plan for plan in plans(16, SMALL, Layout(), BATCH, small_memory) if fit(plan, small_memory) is None]
    fastest = min(predict(plan, small_memory, AQAA).time.total for plan in fitting)
    assert fastest <= found.best[0].time.total < 1.02 * fastest  # candidates are chosen by the formula
    assert found.tried >= len(fitting) > len(found.best) >= 10
    assert all(prediction.peak_bytes <= small_memory.usable_bytes for prediction in found.best)


def test_each_layout_comes_once_in_order_of_time() -> None:
    best = search(16, SMALL, Layout(), BATCH, CLUSTER, AQAA).best
    seconds = [prediction.time.total for prediction in best]
    assert seconds == sorted(seconds)
    labels = [prediction.plan.layout.label.replace(" SP", "") for prediction in best]
    assert len(set(labels)) == len(labels)


def test_reasons_name_what_is_longer() -> None:
    def at(ranks: int) -> Plan:
        return Plan.on(16, SMALL, Layout(pipeline_model_parallel_size=ranks), BATCH)

    best, other = (predict(at(ranks), CLUSTER, AQAA) for ranks in (1, 8))
    assert reason(best, best) == "fastest"
    assert next(iter(losses(other, best))) == "bubble"
    assert reason(other, best).startswith("bubble +")


def test_a_plan_that_does_not_fit_says_what_fills_it() -> None:
    plan = Plan.on(32, RELEASED_130B, Layout(8, 4, sequence_parallel=True), Batch(8192, 1, 512))
    misfit = fit(plan, CLUSTER)
    assert misfit is not None and misfit.lacking > 0
    assert "parameters, gradients and optimizer take" in misfit_reason(misfit)


def test_nothing_fits_names_the_smallest_lack() -> None:
    with pytest.raises(ValueError, match=r"nothing fits on 8 GPUs; smallest lacking \d+\.\d GiB at TP"):
        search(8, RELEASED_130B, Layout(), Batch(8192, 1, 512), CLUSTER, AQAA)


def test_a_batch_that_never_divides_is_named() -> None:
    with pytest.raises(ValueError, match="no layout of 11 GPUs divides the model"):
        search(11, SMALL, Layout(), Batch(2048, 1, 32), CLUSTER, AQAA)


def test_the_flags_of_the_file_are_kept() -> None:
    flags = Layout(overlap_grad_reduce=True, overlap_param_gather=True)
    best = search(16, SMALL, flags, BATCH, CLUSTER, AQAA).best
    assert all(prediction.plan.layout.overlap_param_gather for prediction in best)


def test_pipelines_of_the_130b_are_compared_with_uneven_ones() -> None:
    layout = Layout(8, 8, sequence_parallel=True)
    plan = Plan.on(1024, RELEASED_130B, layout, Batch(8192, 1, 1024))
    predictions = compare_pipelines(plan, CLUSTER, AQAA)
    ways = {
        (prediction.plan.layout.num_chunks, prediction.plan.layout.pipeline_model_parallel_layout is not None)
        for prediction in predictions
    }
    assert {(1, False), (11, False), (2, True), (1, True), (4, True)} <= ways
    halved = {p.plan.layout.num_chunks for p in predictions if p.plan.layout.pipeline_model_parallel_size == 4}
    assert halved == {1, 2, 11, 22} and all(p.plan.num_gpus == 1024 for p in predictions)
    seconds = [prediction.time.total for prediction in predictions]
    assert seconds == sorted(seconds)
    one, eleven = (
        next(p for p in predictions if p.plan.layout == dataclasses.replace(layout, **virtual))
        for virtual in ({}, {"virtual_pipeline_model_parallel_size": 11})
    )
    assert eleven.time.bubble < one.time.bubble and eleven.peak_bytes > one.peak_bytes


def test_planning_starts_without_megatron() -> None:
    code = (
        "import sys; import megatron_aqaa.planner.search, megatron_aqaa.planner.run_file, megatron_aqaa.planner.report;"
        "assert not {'megatron', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
