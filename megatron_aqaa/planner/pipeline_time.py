"""Seconds of each pipeline chunk, and of the pipeline as a whole."""

from __future__ import annotations

from dataclasses import replace

from megatron_aqaa.planner.cluster import Cluster
from megatron_aqaa.planner.layer_time import Times
from megatron_aqaa.planner.plan import Plan
from megatron_aqaa.planner.planned_model import BYTES
from megatron_aqaa.planner.schedule import Pipeline, duration, simulate
from megatron_aqaa.planner.slice import Seconds

ROUNDS = 4
"""Rounds of as many micro-batches as ranks: by then the pipeline has filled and works evenly."""


def pipeline_of(plan: Plan, cluster: Cluster, layer: Times) -> Pipeline:
    """Seconds of each chunk, with what the transfer to the next stage costs where it is not hidden."""
    transfer = stage_transfer(plan, cluster)
    forward, backward = [], []
    for chunks in plan.stages:
        forward.append([_chunk_forward(layer, chunk.num_layers, chunk.embedding, chunk.head).total for chunk in chunks])
        backward.append([_chunk_backward(layer, chunk.num_layers, chunk.head).total for chunk in chunks])
    if plan.layout.pipeline_model_parallel_size == 1:
        return Pipeline(forward, backward, 0.0, plan.num_microbatches)
    if plan.layout.num_chunks == 1:  # 1F1B waits for each transfer
        forward, backward = ([[s + transfer for s in rank] for rank in side] for side in (forward, backward))
        return Pipeline(forward, backward, 0.0, plan.num_microbatches)
    cost = cluster.network_overlap_cost
    forward, backward = (
        [[s + max(0.0, transfer - s) + cost * transfer for s in rank] for rank in side] for side in (forward, backward)
    )
    return Pipeline(forward, backward, transfer, plan.num_microbatches)


def pipeline_seconds(pipeline: Pipeline) -> float:
    """From the first forward to the last backward, for chunks of about the same size.

    The slowest rank works without a pause, and each other rank's share of one micro-batch, a chunk's worth, is waited
    for once: `(p − 1) / (m · v)` of the work where all ranks are equal.
    """
    by_rank = [sum(f) + sum(b) for f, b in zip(pipeline.forward, pipeline.backward, strict=True)]
    longest = max(by_rank)
    filling = (pipeline.num_ranks - 1) * 2 * pipeline.transfer
    return pipeline.num_microbatches * longest + (sum(by_rank) - longest) / pipeline.num_chunks + filling


def played_seconds(pipeline: Pipeline) -> float:
    """The same by the timetable, for chunks of any size.

    A long step is played for a few rounds of micro-batches; the middle repeats itself.
    """
    ranks, total = pipeline.num_ranks, pipeline.num_microbatches
    if total <= ROUNDS * ranks:
        return duration(simulate(pipeline))
    rest = total % ranks
    shorter, longer = (
        duration(simulate(replace(pipeline, num_microbatches=rounds * ranks + rest))) for rounds in (ROUNDS - 1, ROUNDS)
    )
    return longer + (longer - shorter) * (total - ROUNDS * ranks - rest) / ranks


def rank_seconds(plan: Plan, layer: Times, rank: int) -> Seconds:
    """Work of one micro-batch on pipeline rank `rank`."""
    total = Seconds()
    for chunk in plan.stages[rank]:
        total = total + _chunk_forward(layer, chunk.num_layers, chunk.embedding, chunk.head)
        total = total + _chunk_backward(layer, chunk.num_layers, chunk.head)
    return total


def stage_transfer(plan: Plan, cluster: Cluster) -> float:
    """Seconds that hidden states take to the next stage."""
    layout = plan.layout
    num_bytes = plan.hidden_tokens * plan.model.hidden_size * BYTES[plan.model.params_dtype]
    apart = layout.tensor_model_parallel_size * layout.context_parallel_size * plan.data_parallel_size
    if cluster.in_node(layout.pipeline_model_parallel_size, apart):
        return num_bytes / (cluster.nvlink_gbs * 1e9)
    return cluster.network_s(num_bytes)


def _chunk_forward(layer: Times, num_layers: int, embedding: bool, head: bool) -> Seconds:
    seconds = layer.layer_forward * num_layers
    seconds = seconds + layer.embedding if embedding else seconds
    return seconds + layer.head_forward if head else seconds


def _chunk_backward(layer: Times, num_layers: int, head: bool) -> Seconds:
    seconds = layer.layer_backward * num_layers
    return seconds + layer.head_backward if head else seconds
