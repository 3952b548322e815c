"""The distributed optimizer's state for a checkpoint, as views of where it lies.

Megatron-Core 0.16.1's `fully_reshardable` state, which loads at any layout, is gathered on every data-parallel rank
when it is saved: the whole state is copied five times, and all before an asynchronous save can begin. Here each rank
names the part that it owns: a stretch of a parameter's elements is at most three boxes of a matrix. The tensors in the
checkpoint are the same, and loading is Megatron's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import ChainedOptimizer, DistributedOptimizer, MegatronOptimizer

SHARDING_TYPE = "fully_reshardable"
LOADING_METADATA = {"distrib_optim_sharding_type": SHARDING_TYPE}
_STATES = ("param", "exp_avg", "exp_avg_sq")
Box = tuple[tuple[int, ...], tuple[int, ...]]
"""First element and size along each dimension."""


def optimizer_state(optimizer: MegatronOptimizer, model_state: dict[str, Any]) -> dict[str, Any]:
    """What `optimizer.sharded_state_dict` gives for saving, without copies and without talking to other ranks.

    Args:
        optimizer: Megatron's distributed optimizer.
        model_state: sharded state of its model; its tensors are the parameters themselves.
    """
    part = optimizer.chained_optimizers[0] if isinstance(optimizer, ChainedOptimizer) else optimizer
    assert isinstance(part, DistributedOptimizer), type(part)
    assert not isinstance(optimizer, ChainedOptimizer) or len(optimizer.chained_optimizers) == 1
    shards = _shards_by_parameter(model_state)
    state: dict[str, Any] = part.state_dict()
    state["param_state"] = {
        index: list(_owned(part, parameter, owned, shards[parameter]))
        for index, (parameter, owned) in enumerate(_owned_parameters(part))
    }
    state["param_state_sharding_type"] = SHARDING_TYPE
    return state


def _shards_by_parameter(model_state: dict[str, Any]) -> dict[torch.Tensor, list[ShardedTensor]]:
    """Where each parameter's elements belong: one shard, or several where a factory splits it (gate and up)."""
    shards: dict[torch.Tensor, list[ShardedTensor]] = {}
    for entry in nested_values(model_state):
        if isinstance(entry, ShardedTensorFactory):
            shards[entry.data] = list(nested_values(entry.build()))
        elif isinstance(entry, ShardedTensor):
            shards[entry.data] = [entry]
    return shards


def _owned_parameters(optimizer: DistributedOptimizer) -> Iterator[tuple[torch.Tensor, slice]]:
    """Parameters of which this data-parallel rank keeps state, and which of their elements."""
    for buffer in optimizer.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield parameter, slice(ranges["param"].start, ranges["param"].end)


def _owned(
    optimizer: DistributedOptimizer, parameter: torch.Tensor, owned: slice, shards: list[ShardedTensor]
) -> Iterator[ShardedTensor]:
    states = optimizer._get_main_param_and_optimizer_states(parameter)
    for shard in shards:
        assert shard.data.is_contiguous() and len(shard.replica_id) == 3, shard
        first = shard.data.storage_offset() - parameter.storage_offset()
        start, stop = max(owned.start, first), min(owned.stop, first + shard.data.numel())
        for name in _STATES if start < stop else ():
            values = states[name].detach().view(-1)[start - owned.start : stop - owned.start]
            key = f"optimizer.state.{name}.{shard.key}"
            yield from _boxed(shard, key, values, start - first)


def _boxed(shard: ShardedTensor, key: str, values: torch.Tensor, start: int) -> Iterator[ShardedTensor]:
    """`values`, [n], as boxes of the global tensor; they are the shard's elements from `start` on."""
    layers = (1,) * shard.prepend_axis_num
    done = 0
    for offsets, sizes in boxes(start, start + len(values), tuple(shard.local_shape)):
        inner = (*(0 for _ in layers), *offsets)
        count = math.prod(sizes)
        yield dataclasses.replace(
            shard,
            key=key,
            data=values[done : done + count].view(*layers, *sizes),
            dtype=values.dtype,
            local_shape=(*layers, *sizes),
            global_offset=tuple(a + b for a, b in zip(shard.global_offset, inner, strict=True)),
            axis_fragmentations=None,  # not cut in a regular grid
            prepend_axis_num=0,
            replica_id=(*shard.replica_id[:2], 0),  # no other data-parallel rank has these elements
        )
        done += count


def boxes(start: int, stop: int, shape: tuple[int, ...]) -> Iterator[Box]:
    """Boxes that hold the elements start … stop of a row-major tensor of `shape`, in their order."""
    if start >= stop:
        return
    if len(shape) <= 1:
        yield (start,) * len(shape), (stop - start,) * len(shape)
        return
    row = math.prod(shape[1:])
    first_whole, end_whole = -(-start // row), stop // row
    if first_whole > end_whole:  # within one row
        yield from _in_row(end_whole, start, stop, shape)
        return
    yield from _in_row(first_whole - 1, start, first_whole * row, shape)
    if first_whole < end_whole:
        yield (first_whole, *(0 for _ in shape[1:])), (end_whole - first_whole, *shape[1:])
    yield from _in_row(end_whole, end_whole * row, stop, shape)


def _in_row(index: int, start: int, stop: int, shape: tuple[int, ...]) -> Iterator[Box]:
    before = index * math.prod(shape[1:])
    for offsets, sizes in boxes(start - before, stop - before, shape[1:]):
        yield (index, *offsets), (1, *sizes)
