"""Layout checks, joining and leaving, and the zig-zag order."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from megatron_aqaa import platform
from megatron_aqaa.platform import ParallelConfig, zigzag_order, zigzag_shard


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"tensor_model_parallel_size": 0}, "at least 1"),
        ({"context_parallel_size": -1}, "at least 1"),
        ({"sequence_parallel": True}, "tensor_model_parallel_size of at least 2"),
        ({"virtual_pipeline_model_parallel_size": 2}, "pipeline_model_parallel_size of at least 2"),
        ({"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 1}, "leave it out"),
    ],
)
def test_layouts_that_make_no_sense_are_refused(fields: dict[str, int], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        ParallelConfig(**fields)


def test_one_process_joins_changes_and_leaves() -> None:
    for _ in range(2):
        platform.initialize(ParallelConfig(), seed=3)
        platform.initialize(ParallelConfig(), seed=4)  # again over the same processes
        assert dist.get_world_size() == 1
        assert parallel_state.get_tensor_model_parallel_world_size() == 1
        platform.shutdown()
        assert not dist.is_initialized()
    platform.shutdown()  # harmless


def test_the_seed_decides_the_default_and_the_tensor_parallel_generator() -> None:
    def draws(seed: int) -> tuple[float, float]:
        platform.initialize(ParallelConfig(), seed)
        with tensor_parallel.get_cuda_rng_tracker().fork():
            inside = float(torch.rand(()))
        return float(torch.rand(())), inside

    first, again, other = draws(1), draws(1), draws(2)
    platform.shutdown()
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]
    assert first[0] != first[1]


def test_too_few_processes_are_told_what_to_start() -> None:
    with pytest.raises(ValueError, match=r"1 processes cannot hold copies of a model over 4.*torchrun"):
        platform.initialize(ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2))
    assert not dist.is_initialized()


def test_an_unknown_megatron_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.17.0")
    with pytest.raises(RuntimeError, match=r"megatron-core 0\.17\.0 is installed.*0\.16\.1"):
        platform.initialize(ParallelConfig())


def test_a_missing_psutil_is_named_before_a_checkpoint_can_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="psutil"):
        platform.initialize(ParallelConfig())


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_zigzag_pairs_an_early_with_a_late_chunk(parts: int) -> None:
    order = zigzag_order(parts)
    assert sorted(order) == list(range(2 * parts))
    assert {order[2 * rank] + order[2 * rank + 1] for rank in range(parts)} == {2 * parts - 1}
    sequence = torch.arange(24).reshape(2, 12).repeat(1, parts)
    shards = [zigzag_shard(sequence, 1, rank, parts) for rank in range(parts)]
    if parts > 1:
        chunks = sequence.chunk(2 * parts, 1)
        assert torch.equal(torch.cat(shards, 1), torch.cat([chunks[index] for index in order], 1))
    else:
        assert shards[0] is sequence


def test_a_length_that_cannot_be_cut_is_named() -> None:
    with pytest.raises(ValueError, match="length 10 must be a multiple of .* = 4"):
        zigzag_shard(torch.zeros(1, 10), 1, 0, 2)
