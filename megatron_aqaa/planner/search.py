"""Which layouts of a number of GPUs hold the model, and which is fastest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_aqaa.planner.cluster import GIB, Cluster
from megatron_aqaa.planner.layout import Layout
from megatron_aqaa.planner.plan import Batch, Plan, Software
from megatron_aqaa.planner.planned_model import PlannedModel, Recompute
from megatron_aqaa.planner.prediction import Prediction, predict
from megatron_aqaa.planner.reasons import Misfit, fit
from megatron_aqaa.planner.stage_options import pipeline_options

RECOMPUTES: tuple[Recompute, ...] = ("none", "attention", "mlp", "full")
MICRO_BATCHES = (1, 2, 4, 8)
MOST_PLAYED = 24
"""Layouts that are timed exactly: the formula's first ones."""
SHORTEST_PART = 4096
"""Tokens of a sequence that a context-parallel rank must keep: below, splitting a sequence costs more than it gives."""


@dataclass
class Found:
    """What a search found.

    Attributes:
        best: the fastest predictions, one per layout (its best micro-batch, recompute and sequence parallelism).
        misfits: per layout, the plan that lacks least.
        tried: plans looked at.
    """

    best: list[Prediction] = field(default_factory=list)
    misfits: list[Misfit] = field(default_factory=list)
    tried: int = 0


def search(
    num_gpus: int, model: PlannedModel, flags: Layout, batch: Batch, cluster: Cluster, software: Software
) -> Found:
    """Try every layout of `num_gpus`, with the overlap flags of `flags`.

    Raises:
        ValueError: no layout divides the model and the batch, or none fits.
    """
    fastest: dict[tuple[object, ...], Prediction] = {}
    misfits: dict[tuple[object, ...], Misfit] = {}
    found = Found()
    for plan in plans(num_gpus, model, flags, batch, cluster):
        found.tried += 1
        key = _layout_key(plan)
        misfit = fit(plan, cluster)
        if misfit is not None:
            if key not in misfits or misfit.lacking < misfits[key].lacking:
                misfits[key] = misfit
            continue
        prediction = predict(plan, cluster, software, played=False)
        if key not in fastest or prediction.time.total < fastest[key].time.total:
            fastest[key] = prediction
    found.best = _played(sorted(fastest.values(), key=_seconds), cluster, software)
    found.misfits = sorted((m for key, m in misfits.items() if key not in fastest), key=lambda misfit: misfit.lacking)
    _check_found(found, num_gpus, batch)
    return found


def plans(num_gpus: int, model: PlannedModel, flags: Layout, batch: Batch, cluster: Cluster) -> Iterator[Plan]:
    """Every plan whose sizes divide."""
    for tensor in _powers(cluster.gpus_per_node):
        for context in _powers(max(1, batch.sequence_length // SHORTEST_PART)):
            for ranks in range(1, model.num_layers + 1):
                if num_gpus % (tensor * context * ranks):
                    continue
                for virtual, text in pipeline_options(model.num_layers, ranks):
                    for sequence in (True, False)[: 2 if tensor > 1 else 1]:
                        split = sequence and tensor > 1
                        layout = dataclasses.replace(
                            flags,
                            tensor_model_parallel_size=tensor,
                            pipeline_model_parallel_size=ranks,
                            virtual_pipeline_model_parallel_size=virtual,
                            context_parallel_size=context,
                            sequence_parallel=split,
                            pipeline_model_parallel_layout=text,
                            tp_comm_overlap=flags.tp_comm_overlap and split,
                        )
                        yield from _variants(num_gpus, model, batch, layout)


def _played(best: list[Prediction], cluster: Cluster, software: Software) -> list[Prediction]:
    """The first ones again, with their pipelines' timetables played through."""
    again = [predict(prediction.plan, cluster, software) for prediction in best[:MOST_PLAYED]]
    return sorted(again, key=_seconds)


def _seconds(prediction: Prediction) -> float:
    return prediction.time.total


def _variants(num_gpus: int, model: PlannedModel, batch: Batch, layout: Layout) -> Iterator[Plan]:
    for micro in MICRO_BATCHES:
        try:
            plan = Plan.on(num_gpus, model, layout, dataclasses.replace(batch, micro_batch_size=micro))
            _ = plan.stages
        except ValueError:  # sizes that do not divide are no candidates
            continue
        for recompute in RECOMPUTES:
            yield dataclasses.replace(plan, model=dataclasses.replace(model, recompute=recompute))


def _layout_key(plan: Plan) -> tuple[object, ...]:
    layout = plan.layout
    return (
        layout.tensor_model_parallel_size,
        layout.pipeline_model_parallel_size,
        layout.num_chunks,
        layout.context_parallel_size,
    )


def _powers(largest: int) -> list[int]:
    return [1 << exponent for exponent in range(largest.bit_length()) if 1 << exponent <= largest]


def _check_found(found: Found, num_gpus: int, batch: Batch) -> None:
    if found.best:
        return
    if not found.misfits:
        raise ValueError(
            f"no layout of {num_gpus} GPUs divides the model and training.global_batch_size = "
            f"{batch.global_batch_size}: take another number of GPUs, or a batch that is a multiple of it"
        )
    least = found.misfits[0]
    raise ValueError(
        f"nothing fits on {num_gpus} GPUs; smallest lacking {least.lacking / GIB:.1f} GiB at {least.plan.label}: take "
        "more GPUs, larger ones, or set model.recompute_logits: true"
    )
