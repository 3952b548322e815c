"""Seconds of one optimizer step, and where they go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_aqaa.planner.cluster import Cluster
from megatron_aqaa.planner.layer_time import times
from megatron_aqaa.planner.memory import GRADIENT_BYTES, RankMemory, embedding_bucket
from megatron_aqaa.planner.pipeline_time import pipeline_of, pipeline_seconds, played_seconds, rank_seconds
from megatron_aqaa.planner.plan import Plan, Software
from megatron_aqaa.planner.schedule import Pipeline
from megatron_aqaa.planner.slice import MICRO, Seconds

SMALL_COLLECTIVES = 5  # per step: loss sums, token count, gradient norm, norms' gradients, found-inf


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step.

    Attributes:
        rank: what the slowest pipeline rank does in all micro-batches.
        stages: transfers between stages that stick out.
        bubble: what the pipeline waits for filling, draining and its slowest rank's neighbours.
        slowest_gpu: what all wait for the slowest GPU.
        data: gradient reduce-scatter and parameter all-gather that stick out.
        optimizer: update, gradient norm and scaling.
    """

    rank: Seconds
    stages: float
    bubble: float
    slowest_gpu: float
    data: float
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.rank.total + self.stages + self.bubble + self.slowest_gpu + self.data + self.optimizer


def step_time(
    plan: Plan, cluster: Cluster, software: Software, memory: Sequence[RankMemory], *, played: bool = True
) -> StepTime:
    """Pipeline, data-parallel communication and optimizer, one after the other as far as they do not overlap.

    Args:
        plan: what is timed.
        cluster: its rates.
        software: its kernels.
        memory: of each pipeline rank: what is sent and updated.
        played: play the pipeline's timetable through; False: by the formula, which is close where chunks are equal.
    """
    layer = times(plan, cluster, software)
    pipeline = pipeline_of(plan, cluster, layer)
    by_rank = [sum(f) + sum(b) for f, b in zip(pipeline.forward, pipeline.backward, strict=True)]
    slowest = max(range(len(by_rank)), key=lambda rank: by_rank[rank])
    busy = rank_seconds(plan, layer, slowest) * plan.num_microbatches
    stages = bubble = 0.0
    if len(by_rank) > 1:
        stages = by_rank[slowest] * plan.num_microbatches - busy.total
        whole = played_seconds(pipeline) if played else pipeline_seconds(pipeline)
        bubble = whole - busy.total - stages
    slowest_gpu = (busy.total + stages + bubble) * cluster.slowest_gpu_per_doubling * math.log2(plan.num_gpus)
    data = _data_seconds(plan, cluster, pipeline, memory)
    return StepTime(busy, stages, bubble, slowest_gpu, data, _optimizer_seconds(cluster, memory))


def _data_seconds(plan: Plan, cluster: Cluster, pipeline: Pipeline, memory: Sequence[RankMemory]) -> float:
    """Reduce-scatter of fp32 gradients and all-gather of parameters, on the rank that delays the step most.

    Later stages end their backward and begin their forward while earlier ones work: that time is theirs for free. With
    overlap the last micro-batch's backward (with interleaving, that of the last group, all chunks but one) hides the
    rest, except for the bucket that is done last, and needed first: that of the embedding on rank 0.
    """
    layout, size = plan.layout, plan.num_shards
    span = layout.tensor_model_parallel_size
    first, whole = embedding_bucket(plan), memory[0].gradients // GRADIENT_BYTES
    exposed = 0.0
    for side, of_bytes, overlap in (
        (pipeline.backward, "gradients", layout.overlap_grad_reduce),
        (pipeline.forward, "parameters", layout.overlap_param_gather),
    ):
        transfers = [cluster.collective_s(getattr(rank, of_bytes), size, span) for rank in memory]
        waited = _exposed(transfers, side, None)
        if overlap:
            last = cluster.collective_s(getattr(memory[0], of_bytes) * first / whole, size, span)
            waited = min(waited, last + _exposed(transfers, side, cluster.overlap_cost(size, span)))
        exposed += waited
    return exposed


def _exposed(transfers: list[float], side: Sequence[Sequence[float]], overlap_cost: float | None) -> float:
    """What sticks out of a rank's transfer, where it is most; without overlap only idle time hides any."""
    ranks, chunks = len(side), len(side[0])
    group = max(1.0, ranks * (chunks - 1) / chunks)
    worst, idle = 0.0, 0.0
    for transfer, work in zip(transfers, side, strict=True):
        window = 0.0 if overlap_cost is None else sum(work) * group
        worst = max(worst, transfer - window - idle + (overlap_cost or 0.0) * min(window, transfer))
        idle += sum(work) / chunks
    return worst


def _optimizer_seconds(cluster: Cluster, memory: Sequence[RankMemory]) -> float:
    """Adam reads and writes its state once, gradients are zeroed, scaled and measured."""
    moved = max(3 * rank.gradients + 2.5 * rank.optimizer for rank in memory)
    return moved / (cluster.memory_gbs * 1e9) + SMALL_COLLECTIVES * cluster.network_latency_us * MICRO
