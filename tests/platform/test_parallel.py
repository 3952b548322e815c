"""Layout checks, joining and leaving, and what tensor parallelism asks of the environment."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from megatron_aqaa import platform
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.platform.parallel import _keep_launch_order


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"tensor_model_parallel_size": 0}, "at least 1"),
        ({"context_parallel_size": -1}, "at least 1"),
        ({"sequence_parallel": True}, "tensor_model_parallel_size of at least 2"),
        ({"virtual_pipeline_model_parallel_size": 2}, "pipeline_model_parallel_size of at least 2"),
        ({"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 1}, "leave it out"),
        ({"pipeline_model_parallel_layout": "Ett|ttL"}, "has 2 stages, but .* is 1 × 1"),
        ({"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "Et|t|t|L"}, "has 4 stages, .* 2 × 1"),
        ({"overlap_param_gather": True}, "needs overlap_grad_reduce: true"),
        ({"tp_comm_overlap": True, "tensor_model_parallel_size": 2}, "needs sequence_parallel: true"),
    ],
)
def test_layouts_that_make_no_sense_are_refused(fields: dict[str, object], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        ParallelConfig(**fields)  # type: ignore[arg-type]


def test_layers_by_stage() -> None:
    equal = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    uneven = ParallelConfig(pipeline_model_parallel_size=2, pipeline_model_parallel_layout="Et|tttL")
    assert ParallelConfig().layers_by_stage(5) == (5,)
    assert equal.layers_by_stage(8) == (2, 2, 2, 2)
    assert uneven.layers_by_stage(4) == (1, 3)
    with pytest.raises(ValueError, match="num_layers = 6 must be a multiple of pipeline stages = 4, or .*layout"):
        equal.layers_by_stage(6)
    with pytest.raises(ValueError, match="has 4 layers t, but model.num_layers = 6"):
        uneven.layers_by_stage(6)


@pytest.mark.parametrize(
    ("found", "running", "capability", "refused"),
    [
        (None, False, 9, False),  # set in time
        (None, True, 9, True),
        ("1", True, 9, False),
        ("8", False, 9, True),
        ("8", False, 10, False),
    ],
)
def test_tensor_parallelism_before_blackwell_needs_one_connection(
    monkeypatch: pytest.MonkeyPatch, found: str | None, running: bool, capability: int, refused: bool
) -> None:
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    monkeypatch.setenv(name, found or "")
    if found is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: running)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
    if refused:
        with pytest.raises(ValueError, match=f"{name} is {found}: .*export {name}=1"):
            _keep_launch_order()
    else:
        _keep_launch_order()
        assert os.environ[name] == (found or "1")


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
