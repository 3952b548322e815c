"""Megatron's gradient buffers: how parameters are padded, cut into buckets and shared out by the distributed optimizer.

By the rules of Megatron-Core 0.16.1, `distributed/param_and_grad_buffer.py`: parameters are laid out in reverse order,
each from a multiple of 64 elements; a bucket ends at a multiple of the ranks and of 128; a shared embedding is alone in
its bucket; each rank of the data-parallel group updates an equal part of every bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from megatron_aqaa.planner.parameters import Parameter

PARAMETER_ALIGNMENT = 64
BUCKET_ALIGNMENT = 128


class Bucket(NamedTuple):
    """One bucket of a buffer: its end with padding, and where its parameters lie."""

    start: int
    stop: int
    spans: tuple[tuple[int, int], ...]


def buckets(parameters: Sequence[Parameter], num_shards: int, bucket_size: int | None = None) -> list[Bucket]:
    """Lay out the buffer of one model chunk.

    Args:
        parameters: in order of registration.
        num_shards: ranks that share the optimizer state: data parallel × context parallel.
        bucket_size: elements after which a bucket is closed; None where gradients are reduced at the end of the step.
    """
    alignment = math.lcm(num_shards, BUCKET_ALIGNMENT)
    done: list[Bucket] = []
    start, spans = 0, list[tuple[int, int]]()

    def close(stop: int) -> int:
        nonlocal start, spans
        stop = _rounded_up(stop, alignment)
        done.append(Bucket(start, stop, tuple(spans)))
        start, spans = stop, []
        return stop

    position = 0
    for parameter in reversed(parameters):
        position = _rounded_up(position, PARAMETER_ALIGNMENT)
        if parameter.shared and spans:
            position = close(position)
        spans.append((position, position + parameter.numel))
        position += parameter.numel
        if parameter.shared or (bucket_size is not None and position - start >= bucket_size):
            position = close(position)
    if spans:
        close(position)
    return done


def buffer_numel(laid_out: Sequence[Bucket]) -> int:
    """Elements of the buffer, padding included: those of its parameters and of its gradients."""
    return laid_out[-1].stop if laid_out else 0


def shard_numel(laid_out: Sequence[Bucket], num_shards: int, shard: int) -> int:
    """Parameter elements that rank `shard` of the data-parallel group updates."""
    total = 0
    for bucket in laid_out:
        size = (bucket.stop - bucket.start) // num_shards
        begin = bucket.start + shard * size
        total += sum(max(0, min(stop, begin + size) - max(start, begin)) for start, stop in bucket.spans)
    return total


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
