"""Checks of the model configuration and its translation."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa.model import config as model_config
from megatron_aqaa.model.config import to_transformer_config
from megatron_aqaa.platform import ParallelConfig
from tests.model.sizes import TINY, variant


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_query_groups": 5}, "num_attention_heads = 12 must be a multiple of num_query_groups = 5"),
        ({"hidden_size": 50, "kv_channels": None}, "give kv_channels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variant(**changes)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (ParallelConfig(tensor_model_parallel_size=8), "num_attention_heads = 12 must be a multiple of"),
        (ParallelConfig(pipeline_model_parallel_size=4), "num_layers = 2 must be a multiple of pipeline stages = 4"),
    ],
)
def test_layouts_that_do_not_divide_the_model_are_refused(layout: ParallelConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_transformer_config(TINY, layout)


def test_qwen2_and_llama3_settings() -> None:
    assert to_transformer_config(variant(add_qkv_bias=True), ParallelConfig()).add_qkv_bias
    assert not to_transformer_config(TINY, ParallelConfig()).add_qkv_bias
    assert not to_transformer_config(variant(add_qkv_bias=True), ParallelConfig()).add_bias_linear


def test_translation() -> None:
    layout = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True)
    config = to_transformer_config(variant(params_dtype="bf16", kv_channels=None, recompute="full"), layout)
    assert config.kv_channels == 4
    assert config.params_dtype == config.pipeline_dtype == torch.bfloat16
    assert config.bf16
    assert config.sequence_parallel
    assert config.recompute_granularity == "full"
    assert config.hidden_dropout == config.attention_dropout == 0.0
    assert config.calculate_per_token_loss
    assert not to_transformer_config(TINY, ParallelConfig()).bf16


@pytest.mark.skipif(torch.cuda.is_available(), reason="describes gloo")
def test_the_interleaved_schedule_is_kept_from_the_transport_that_mixes_it_up() -> None:
    interleaved = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    config = to_transformer_config(variant(num_layers=4), interleaved)
    assert config.overlap_p2p_comm
    assert not config.batch_p2p_comm
    assert not config.deallocate_pipeline_outputs


@pytest.mark.parametrize(("recompute", "module"), [("attention", "core_attn"), ("mlp", "mlp")])
def test_selective_recomputation(recompute: str, module: str) -> None:
    config = to_transformer_config(variant(recompute=recompute), ParallelConfig())
    assert (config.recompute_granularity, config.recompute_modules) == ("selective", [module])


def test_the_pipeline_layout_reaches_megatron() -> None:
    layout = ParallelConfig(
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=2,
        pipeline_model_parallel_layout="E|ttt|t|L",
    )
    config = to_transformer_config(variant(num_layers=4), layout)
    assert [[len(stage) for stage in rank] for rank in config.pipeline_model_parallel_layout.layout] == [[1, 1], [3, 1]]
    with pytest.raises(ValueError, match="has 4 layers t, but model.num_layers = 2"):
        to_transformer_config(TINY, layout)


@pytest.mark.parametrize("interleaved", [True, False])
def test_on_a_gpu_the_pipeline_has_one_way_of_sending(monkeypatch: pytest.MonkeyPatch, interleaved: bool) -> None:
    monkeypatch.setattr(model_config, "has_gpu", lambda: True)
    layout = ParallelConfig(
        pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2 if interleaved else None
    )
    config = to_transformer_config(variant(num_layers=4), layout)
    assert (config.overlap_p2p_comm, config.batch_p2p_comm) == (interleaved, not interleaved)
    assert config.deallocate_pipeline_outputs
