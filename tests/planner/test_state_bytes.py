"""Bytes of parameters, gradients and optimizer state: the planner's beside what Megatron allocates, on every rank."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from megatron.core import parallel_state
from megatron.core.optimizer.optimizer import ChainedOptimizer

from megatron_aqaa import platform
from megatron_aqaa.model import ModelConfig
from megatron_aqaa.planner.layout import Layout, stages
from megatron_aqaa.planner.memory import state_bytes
from megatron_aqaa.planner.planned_model import PlannedModel
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.lm_state import new_state
from megatron_aqaa.training.optimizer import OptimizerConfig
from megatron_aqaa.vocabulary import Vocabulary
from tests.distributed.launch import run

pytestmark = pytest.mark.distributed

VOCABULARY = Vocabulary.for_text(160)
PLAIN: dict[str, Any] = {  # no size is a multiple of 64: every padding rule shows
    "num_layers": 4,
    "hidden_size": 40,
    "ffn_hidden_size": 72,
    "num_attention_heads": 4,
    "num_query_groups": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "sqrt_alibi": {},
    "fp32": {"params_dtype": "fp32"},
    "qwen2": {"position_embedding": "rope", "add_qkv_bias": True},
    "tied": {"untie_embeddings_and_output_weights": False},
    "small_tables": {"codebook_type_embedding": True, "group_position_embedding": True},
    "wide_heads": {"kv_channels": 12, "num_query_groups": 4},
}
ONE: list[dict[str, Any]] = [{}]
TWO: list[dict[str, Any]] = [
    {},  # DP2
    {"tensor_model_parallel_size": 2},
    {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    {"pipeline_model_parallel_size": 2},
    {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "Et*3|tL"},
    {"context_parallel_size": 2},
    {"overlap_grad_reduce": True, "overlap_param_gather": True},
]
FOUR: list[dict[str, Any]] = [
    {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},  # DP1
    {"tensor_model_parallel_size": 2},  # DP2
    {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},  # DP2
    {},  # DP4
]
Sizes = dict[tuple[str, int], tuple[int, int, tuple[int, int, int]]]


def measure(layouts: list[dict[str, Any]]) -> Sizes:
    """(pipeline rank, shard, bytes) of this rank by model and layout."""
    sizes: Sizes = {}
    for index, layout in enumerate(layouts):
        parallel = ParallelConfig(**layout)
        platform.initialize(parallel)
        for name, changes in MODELS.items():
            model = ModelConfig(**{**PLAIN, **changes})
            state = new_state(model, VOCABULARY, parallel, OptimizerConfig(1e-3), 10)
            stage = parallel_state.get_pipeline_model_parallel_rank()
            shard = parallel_state.get_data_parallel_rank(with_context_parallel=True)
            sizes[name, index] = stage, shard, allocated(state)
    return sizes


def allocated(state: Any) -> tuple[int, int, int]:
    """Bytes of the buffers and of the optimizer's tensors; every parameter must lie in a buffer."""
    buffers = [buffer for chunk in state.model_chunks for buffer in chunk.buffers]
    storages = {buffer.param_data.untyped_storage().data_ptr() for buffer in buffers}
    for chunk in state.model_chunks:
        for parameter in chunk.parameters():
            assert parameter.untyped_storage().data_ptr() in storages
    optimizer = state.optimizer
    parts = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    tensors = [tensor for part in parts for group in part.shard_fp32_from_float16_groups for tensor in group]
    tensors += [
        moment
        for part in parts
        for moments in part.optimizer.state.values()
        for moment in moments.values()
        if moment.numel() > 1
    ]
    return (
        sum(buffer.param_data.untyped_storage().nbytes() for buffer in buffers),
        sum(buffer.grad_data.untyped_storage().nbytes() for buffer in buffers),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


def planned(name: str, layout: Layout, stage: int, shard: int, num_shards: int) -> tuple[int, int, int]:
    model = PlannedModel(**{**PLAIN, **MODELS[name]}, vocab_size=VOCABULARY.size)
    return state_bytes(model, layout, stages(model, layout)[stage], num_shards, shard)


@pytest.mark.parametrize(("world_size", "layouts"), [(1, ONE), (2, TWO), (4, FOUR)], ids=["one", "two", "four"])
def test_every_rank_holds_what_was_planned(world_size: int, layouts: list[dict[str, Any]]) -> None:
    ranks = run(measure, world_size, layouts)
    wrong = []
    for rank, sizes in enumerate(ranks):
        assert len(sizes) == len(MODELS) * len(layouts)
        for (name, index), (stage, shard, found) in sizes.items():
            layout = Layout(**layouts[index])
            shards = world_size // layout.model_parallel_size * layout.context_parallel_size
            expected = planned(name, layout, stage, shard, shards)
            if found != expected:
                wrong.append(f"rank {rank}, {name}, {layouts[index]}: planned {expected}, found {found}")
    assert not wrong, "\n".join(wrong)


def test_dtypes_change_what_they_should() -> None:
    layout, model = Layout(), PlannedModel(**PLAIN)
    bf16, fp32 = (
        state_bytes(other, layout, stages(other, layout)[0], 2, 0)
        for other in (model, dataclasses.replace(model, params_dtype="fp32"))
    )
    assert fp32[0] == 2 * bf16[0] and fp32[1] == bf16[1] and 3 * fp32[2] == 2 * bf16[2]
