"""Shards: given as numbers, as text, or by the job array."""

from __future__ import annotations

import pytest

from megatron_aqaa.data.shard import Shard, parse_shard


def array(task: int, tasks: tuple[int, ...]) -> dict[str, str]:
    """SLURM's variables in a task of `--array=<tasks>`."""
    values = {"ID": task, "MIN": min(tasks), "MAX": max(tasks), "COUNT": len(tasks)}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_ways_to_name_a_shard() -> None:
    assert parse_shard(None, 16) is None
    assert parse_shard(3, 16) == parse_shard("3/16", None) == parse_shard("3/16", 16) == Shard(3, 16)
    assert parse_shard("array", None, array(3, tuple(range(16)))) == Shard(3, 16)
    # some tasks again: SLURM counts those, not the shards
    assert parse_shard("array", 16, array(3, (3, 7))) == Shard(3, 16)


@pytest.mark.parametrize(
    ("shard", "num_shards", "environment", "message"),
    [
        (16, 16, {}, r"shard = 16: must lie in 0 … 15"),
        (-1, 16, {}, r"must lie in 0 … 15"),
        (3, None, {}, r"of how many\? Write shard=3/16"),
        (0, 0, {}, r"num_shards = 0: must be at least 1"),
        ("16/16", None, {}, r"must lie in 0 … 15"),
        ("3 of 16", None, {}, r"expected a number from 0, 3/16, or array"),
        ("0/0", None, {}, r"expected a number from 0"),
        ("3/16", 8, {}, r"shard = 3/16 and num_shards = 8 disagree"),
        ("array", None, {}, r"SLURM_ARRAY_TASK_ID is not set"),
        ("array", None, array(3, (3, 7)), r"this array has 2 tasks, 3 … 7; tell how many shards there are"),
        ("array", 3, array(3, (3, 7)), r"must lie in 0 … 2"),
    ],
)
def test_shards_that_do_not_exist(
    shard: int | str, num_shards: int | None, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_shard(shard, num_shards, environment)
