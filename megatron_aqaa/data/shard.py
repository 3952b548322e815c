"""Which part of the work is this process's: a number and a count, given or taken from the job array it runs in."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

FROM_ARRAY = "array"
_TASK = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Shard:
    """Every `count`-th piece of the work from piece `index` on."""

    index: int
    count: int


def parse_shard(
    shard: int | str | None, num_shards: int | None, environment: Mapping[str, str] = os.environ
) -> Shard | None:
    """The shard that settings name.

    Args:
        shard: number from 0, or `3/16`, or `array` for the number of the SLURM array task; None for all of the work.
        num_shards: shards there are. Left out, `array` counts the tasks of the array, which must then be all of them.
        environment: where SLURM's variables are.

    Raises:
        ValueError: no such shard, or it cannot be told; says what would be right.
    """
    if num_shards is not None and num_shards < 1:
        raise ValueError(f"num_shards = {num_shards}: must be at least 1")
    if shard is None:
        return None
    if shard == FROM_ARRAY:
        found = _of_array(num_shards, environment)
    elif isinstance(shard, str):
        found = _of_text(shard, num_shards)
    elif num_shards is None:
        raise ValueError(f"shard = {shard}: of how many? Write shard={shard}/16, or give num_shards")
    else:
        found = Shard(shard, num_shards)
    if not 0 <= found.index < found.count:
        raise ValueError(f"shard = {shard}: must lie in 0 … {found.count - 1}, one below the number of shards")
    return found


def _of_text(text: str, num_shards: int | None) -> Shard:
    parts = re.fullmatch(r"(\d+)/(\d+)", text)
    if parts is None or int(parts[2]) < 1:
        raise ValueError(f"shard = {text!r}: expected a number from 0, 3/16, or {FROM_ARRAY}")
    found = Shard(int(parts[1]), int(parts[2]))
    if num_shards not in (None, found.count):
        raise ValueError(f"shard = {text} and num_shards = {num_shards} disagree; leave one of them out")
    return found


def _of_array(num_shards: int | None, environment: Mapping[str, str]) -> Shard:
    try:
        index, first, last, count = (int(environment[f"{_TASK}{name}"]) for name in ("ID", "MIN", "MAX", "COUNT"))
    except KeyError as error:
        raise ValueError(
            f"shard = {FROM_ARRAY}: {error.args[0]} is not set; run it in a job of sbatch --array"
        ) from None
    # An array of some tasks only, `--array=3,7`, has a count of its own: with it, shard 3 would be another one.
    if num_shards is None and (first, last) != (0, count - 1):
        raise ValueError(
            f"shard = {FROM_ARRAY}: this array has {count} tasks, {first} … {last}; tell how many shards there are: "
            f"num_shards=…"
        )
    return Shard(index, num_shards if num_shards is not None else count)
