"""The optimizer's state as boxes of the parameters: what is cut, and that it is what Megatron gathers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing

from megatron_aqaa import platform
from megatron_aqaa.checkpoint import store
from megatron_aqaa.checkpoint.optimizer_shards import LOADING_METADATA, boxes
from megatron_aqaa.platform import ParallelConfig
from tests.distributed.launch import run
from tests.distributed.test_parallel_equals_serial import LLAMA, MODEL, fresh, train

LAYOUTS = {
    "DP2": (MODEL, ParallelConfig()),
    "TP2": (MODEL, ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)),
    "PP2": (MODEL, ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)),
    "tied": (LLAMA, ParallelConfig(pipeline_model_parallel_size=2)),
}


@pytest.mark.parametrize("shape", [(), (7,), (4, 5), (1, 6), (6, 1), (2, 3, 4)])
def test_boxes_hold_a_stretch_of_elements_in_order(shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    whole = torch.arange(count).view(shape)
    for start, stop in itertools.combinations_with_replacement(range(count + 1), 2):
        found = list(boxes(start, stop, shape))
        parts = [whole[tuple(slice(o, o + s) for o, s in zip(*box, strict=True))] for box in found]
        assert all(tuple(part.shape) == box[1] and part.numel() for part, box in zip(parts, found, strict=True))
        assert torch.cat([torch.empty(0), *(part.flatten() for part in parts)]).tolist() == list(range(start, stop))
        assert len(found) <= max(1, 2 * len(shape) - 1)


def save_both_ways(folder: Path) -> None:
    """On one of two ranks: the same state at each layout, saved by ours and by Megatron alone."""
    for name, (model, layout) in LAYOUTS.items():
        state = fresh(model, layout, seed=1)
        train(state, 2)
        state.save(folder / name, keep=1)
        content = store.model_state(state.model_chunks)
        weights = content["model"] if len(state.model_chunks) == 1 else content
        content["optimizer"] = state.optimizer.sharded_state_dict(weights, metadata=LOADING_METADATA)
        if torch.distributed.get_rank() == 0:
            (folder / name / "theirs").mkdir()
        torch.distributed.barrier()
        dist_checkpointing.save(content, str(folder / name / "theirs"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("saved")
    run(save_both_ways, 2, folder)
    platform.initialize(ParallelConfig())
    yield folder
    platform.shutdown()


@pytest.mark.distributed
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_checkpoint_holds_what_megatron_saves(saved: Path, name: str) -> None:
    ours, theirs = store.require_checkpoint(saved / name), saved / name / "theirs"
    found, wanted = tensors(ours), tensors(theirs)
    assert found.keys() == wanted.keys() and sum("exp_avg_sq" in key for key in found) > 8
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key
        assert tensor.abs().sum() > 0, key
    common = [dist_checkpointing.load_common_state_dict(str(path)) for path in (ours, theirs)]
    assert common[0]["optimizer"] == common[1]["optimizer"]


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    loaded = dist_checkpointing.load_plain_tensors(str(checkpoint))
    return {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
