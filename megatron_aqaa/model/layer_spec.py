"""Which modules a transformer layer is built from: Transformer Engine's on a GPU that has it, Megatron's otherwise."""

from __future__ import annotations

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_aqaa.model.alibi import SqrtAlibi, sqrt_alibi_slopes
from megatron_aqaa.model.attention import Backend, SqrtAlibiAttention
from megatron_aqaa.model.config import ModelConfig
from megatron_aqaa.model.explicit_attention import ExplicitBackend
from megatron_aqaa.model.flex_attention import FlexBackend
from megatron_aqaa.model.norm import RMSNorm
from megatron_aqaa.model.swiglu import swiglu
from megatron_aqaa.model.transformer_engine import has_transformer_engine
from megatron_aqaa.platform.device import has_gpu


def transformer_block_spec(
    model: ModelConfig, config: TransformerConfig, pg_collection: ProcessGroupCollection, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """Layers of this pipeline stage. With RoPE the attention is the same, with slopes of zero."""
    use_transformer_engine = has_transformer_engine()
    layer = get_gpt_layer_with_transformer_engine_spec() if use_transformer_engine else _local_layer()
    backend = attention_backend(rank_rule(model, pg_collection))  # one object: all layers of the stage share its mask
    core_attention = ModuleSpec(SqrtAlibiAttention, params={"backend": backend})
    layer.submodules.self_attention.submodules.core_attention = core_attention
    num_layers = get_num_layers_to_build(config, vp_stage)
    if use_transformer_engine:
        from megatron.core.extensions.transformer_engine import TENorm

        return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=TENorm)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


def attention_backend(rule: SqrtAlibi) -> Backend:
    """Compiled FlexAttention on a GPU; explicit products on the CPU, where that has no backward (torch 2.13)."""
    return FlexBackend(rule) if has_gpu() else ExplicitBackend(rule)


def rank_rule(model: ModelConfig, pg_collection: ProcessGroupCollection) -> SqrtAlibi:
    """The rule of the heads that this tensor-parallel rank holds: a slice of the full list of slopes."""
    slopes = sqrt_alibi_slopes(model.num_attention_heads)
    slopes *= model.alibi_slope_scale if model.position_embedding == "sqrt_alibi" else 0.0
    mine = slopes.chunk(pg_collection.tp.size())[pg_collection.tp.rank()]
    return SqrtAlibi(mine, pg_collection.cp.rank(), pg_collection.cp.size())


def _local_layer() -> ModuleSpec:
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.mlp.submodules.activation_func = swiglu  # taken where `use_te_activation_func` is set
    return layer
