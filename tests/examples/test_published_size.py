"""The recipes' models have the published number of parameters; the large one stage by stage, on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_aqaa import platform
from megatron_aqaa.model import AQAAModel
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.vocabulary import Vocabulary
from tests.examples.recipes import on_cpu

PUBLISHED = {"aqaa_3b": 3_529_706_496, "aqaa_130b": 131_946_590_208}
HIDDEN, FFN, TENSOR = 12288, 31232, 8
LAYER = (HIDDEN * (96 + 2 * 8) * 128 + HIDDEN * HIDDEN + 3 * HIDDEN * FFN) // TENSOR + 2 * HIDDEN  # of one rank
TABLE = 74752 * HIDDEN // TENSOR


class Counts(NamedTuple):
    """Parameters of one process, and of all tensor-parallel ranks together."""

    own: int
    whole: int


@pytest.fixture
def no_processes() -> Iterator[None]:
    """Leaves no group behind."""
    yield
    platform.shutdown()


def counts(models: list[AQAAModel], tensor_size: int) -> Counts:
    parameters = [parameter for model in models for parameter in model.parameters()]
    copies = [tensor_size if getattr(p, "tensor_model_parallel", False) else 1 for p in parameters]
    own = [parameter.numel() for parameter in parameters]
    return Counts(sum(own), sum(size * number for size, number in zip(own, copies, strict=True)))


def build(config: TrainConfig, parallel: ParallelConfig, rank: int) -> list[AQAAModel]:
    """The stages of pipeline rank `rank`, without storage for their matrices."""
    first, last, stages = rank == 0, rank == parallel.pipeline_model_parallel_size - 1, parallel.num_stages
    chunks = stages // parallel.pipeline_model_parallel_size
    with torch.device("meta"):
        return [
            AQAAModel(
                config.model,
                Vocabulary(),
                parallel,
                pre_process=first and chunk == 0,
                post_process=last and chunk == chunks - 1,
                vp_stage=chunk if chunks > 1 else None,
            )
            for chunk in range(chunks)
        ]


def test_the_small_model(no_processes: None) -> None:
    config, parallel = on_cpu("aqaa_3b", "pretrain_stage1")
    platform.initialize(parallel)
    models = build(config, parallel, 0)
    assert models[0].embedding.word_embeddings.weight.is_meta
    assert counts(models, 1).own == PUBLISHED["aqaa_3b"]


def test_the_large_model_by_stages(no_processes: None) -> None:
    """Fake groups of 64 processes; every rank of the pipeline in turn."""
    config, parallel = on_cpu("aqaa_130b", "pretrain_stage1")
    found: list[Counts] = []
    layers: list[list[list[int]]] = []
    for rank in range(8):
        platform.shutdown()
        dist.init_process_group("fake", store=FakeStore(), rank=rank * TENSOR, world_size=64)
        platform.initialize(parallel)
        models = build(config, parallel, rank)
        found.append(counts(models, TENSOR))
        layers.append([[layer.layer_number for layer in model.decoder.layers] for model in models])
    assert sum(stage.whole for stage in found) == PUBLISHED["aqaa_130b"]
    assert [stage.own for stage in found] == [
        11 * LAYER + TABLE, *6 * [11 * LAYER], 11 * LAYER + TABLE + HIDDEN,
    ]  # fmt: skip
    in_order = [number for chunk in range(6) for rank in layers for number in rank[chunk]]
    assert in_order == list(range(1, 89))
    assert [len(chunk) for chunk in layers[3]] == [2, 2, 2, 2, 2, 1]
