"""What all ranks must see alike: one looks or one fails, and every rank goes the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megatron_aqaa import platform

T = TypeVar("T")


def from_rank_zero(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank; a ValueError or OSError of it is raised on every rank."""
    result: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            result[0] = make()
        except (OSError, ValueError) as error:
            result[1] = error
    dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise result[1]
    made: T = result[0]
    return made


def from_all_ranks(value: T) -> list[T]:
    """`value` of every rank, in order of ranks, on every rank."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def on_all_ranks(flag: bool) -> bool:
    """True on every rank if `flag` is true on each."""
    value = torch.tensor(int(flag), device=platform.device())
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return bool(value.item())
