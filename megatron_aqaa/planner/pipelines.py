"""Uneven pipelines beside equal ones: the same model and GPUs with its layers shared out in other ways."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from megatron_aqaa.planner.cluster import Cluster
from megatron_aqaa.planner.layout import write_stages
from megatron_aqaa.planner.plan import Plan, Software
from megatron_aqaa.planner.prediction import Prediction, predict
from megatron_aqaa.planner.stage_options import MOST_UNEVEN_CHUNKS, lighter_ends, pipeline_options


def compare_pipelines(plan: Plan, cluster: Cluster, software: Software) -> list[Prediction]:
    """Predictions of every way to share the layers out over the pipeline ranks of `plan`, fastest first.

    Equal chunks of every size; uneven ones, with ranks as equal as can be; those with a layer less on the ranks that
    hold embedding and head; and equal chunks on half as many ranks, with twice as many copies of the model.
    """
    predictions = [predict(other, cluster, software) for other in _others(plan)]
    return sorted(predictions, key=lambda prediction: prediction.time.total)


def _others(plan: Plan) -> Iterator[Plan]:
    ranks = plan.layout.pipeline_model_parallel_size
    for virtual, text in _ways(plan.model.num_layers, ranks):
        yield from _with(plan, ranks, virtual, text)
    if ranks % 2 == 0 and ranks > 2:
        for virtual, text in pipeline_options(plan.model.num_layers, ranks // 2):
            if text is None:
                yield from _with(plan, ranks // 2, virtual, text)


def _ways(num_layers: int, ranks: int) -> Iterator[tuple[int | None, str | None]]:
    yield from pipeline_options(num_layers, ranks)
    for chunks in range(1, MOST_UNEVEN_CHUNKS + 1):
        if ranks > 2 and num_layers > ranks * chunks:
            yield chunks if chunks > 1 else None, write_stages(lighter_ends(num_layers, ranks, chunks))


def _with(plan: Plan, ranks: int, virtual: int | None, text: str | None) -> Iterator[Plan]:
    """The plan with another pipeline, on as many GPUs; nothing where its micro-batches do not divide."""
    copies = plan.data_parallel_size * plan.layout.pipeline_model_parallel_size // ranks
    layout = dataclasses.replace(
        plan.layout,
        pipeline_model_parallel_size=ranks,
        virtual_pipeline_model_parallel_size=virtual,
        pipeline_model_parallel_layout=text,
    )
    with contextlib.suppress(ValueError):
        yield dataclasses.replace(plan, layout=layout, data_parallel_size=copies)
