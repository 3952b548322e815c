"""Size and kind of the language model, and its translation into Megatron's configuration."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_aqaa.model.transformer_engine import FP8_MULTIPLE, check_fp8, fp8_settings, require_transformer_engine
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.platform.device import has_gpu

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Step-1, Llama or Qwen2 family (RMSNorm, SwiGLU, grouped queries, no dropout). Megatron's names.

    Attributes:
        num_layers: transformer layers.
        hidden_size: width of the residual stream.
        ffn_hidden_size: width of the SwiGLU.
        num_attention_heads: query heads.
        num_query_groups: key/value heads.
        kv_channels: width of one head; None for hidden_size / num_attention_heads.
        max_sequence_length: longest sequence that will be asked for.
        layernorm_epsilon: of RMSNorm.
        init_method_std: standard deviation of initial weights; projections back into the residual stream start
            smaller by the square root of twice the number of layers.
        position_embedding: `"sqrt_alibi"` (Step-1) or `"rope"` (Llama, Qwen).
        alibi_slope_scale: factor on the published slopes.
        rotary_base: of `"rope"`.
        rotary_scaling_factor: of `"rope"`, the one that Llama 3.1 was lengthened with (its `rope_type: llama3`).
        add_qkv_bias: biases on query, key and value (Qwen2).
        untie_embeddings_and_output_weights: output head of its own.
        codebook_type_embedding: add a learned vector for text, linguistic, semantic.
        group_position_embedding: add a learned vector for the place within a group `[L L S S S]`.
        deterministic_embedding_gradient: rows of a token that occurs more than once are summed in a fixed order. False:
            in the order in which a GPU comes to them, by atomic additions. On the CPU always in order.
        params_dtype: of weights and activations; gradients and optimizer are fp32. `"fp64"` is for tests.
        fp8: products of the layers in 8-bit floats, with one scale for each tensor: `"tensorwise"` from the tensor
            itself, `"delayed"` from earlier steps. By Transformer Engine; configured, never executed.
        recompute: what backward computes again instead of keeping: nothing, the attention core (for back ends that keep
            scores; FlexAttention keeps none), the SwiGLU block, or whole layers.
        recompute_logits: keep no probabilities of a micro-batch for backward but compute its logits again, block by
            block: a fourth product of the output head, a fraction of its memory. For large vocabularies and
            micro-batches, where the head sets the peak; it is faster without.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int | None = None
    max_sequence_length: int = 32768
    layernorm_epsilon: float = 1e-5
    init_method_std: float = 0.02
    position_embedding: Literal["sqrt_alibi", "rope"] = "sqrt_alibi"
    alibi_slope_scale: float = 1.0
    rotary_base: int = 10000
    rotary_scaling_factor: float = 1.0
    add_qkv_bias: bool = False
    untie_embeddings_and_output_weights: bool = True
    codebook_type_embedding: bool = False
    group_position_embedding: bool = False
    deterministic_embedding_gradient: bool = True
    params_dtype: Literal["fp32", "bf16", "fp64"] = "bf16"
    fp8: str | None = None
    recompute: Literal["none", "attention", "mlp", "full"] = "none"
    recompute_logits: bool = False

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"model.num_attention_heads = {self.num_attention_heads} must be a multiple of "
                f"num_query_groups = {self.num_query_groups}"
            )
        if self.kv_channels is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"model.hidden_size = {self.hidden_size} is not a multiple of num_attention_heads = "
                f"{self.num_attention_heads}: give kv_channels"
            )
        if self.fp8 is not None:
            check_fp8(self.fp8, self.params_dtype)


def to_transformer_config(model: ModelConfig, parallel: ParallelConfig) -> TransformerConfig:
    """Megatron's configuration of `model` at the layout `parallel`.

    Raises:
        ValueError: heads, layers or width do not divide over the layout, or a setting needs Transformer Engine, which
            is not there.
    """
    _check_divisible(model, parallel)
    if model.fp8 is not None:
        require_transformer_engine("model.fp8", remedy="model.fp8=null")
    if parallel.tp_comm_overlap:
        require_transformer_engine("parallel.tp_comm_overlap", remedy="parallel.tp_comm_overlap=false")
    dtype = DTYPES[model.params_dtype]
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels or model.hidden_size // model.num_attention_heads,
        layernorm_epsilon=model.layernorm_epsilon,
        init_method_std=model.init_method_std,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=model.add_qkv_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        pipeline_model_parallel_layout=parallel.pipeline_model_parallel_layout,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        tp_comm_overlap=parallel.tp_comm_overlap,
        # The loss is a sum over tokens divided once by the global count: a mean per rank would double the gradient
        # under context parallelism and weigh micro-batches by their number, not by their tokens.
        calculate_per_token_loss=True,
        cuda_graph_scope=[],  # its default value warns of its own deprecation
        **fp8_settings(model.fp8),
        **_recompute(model),
        **_platform_settings(parallel),
    )


def _check_divisible(model: ModelConfig, parallel: ParallelConfig) -> None:
    parallel.layers_by_stage(model.num_layers)
    size = parallel.tensor_model_parallel_size
    multiple = 1 if model.fp8 is None else FP8_MULTIPLE
    if model.num_attention_heads % size:
        raise ValueError(
            f"model.num_attention_heads = {model.num_attention_heads} must be a multiple of "
            f"tensor_model_parallel_size = {size}"
        )
    if model.ffn_hidden_size % (size * multiple):
        fp8 = "" if model.fp8 is None else f", and what each rank gets one of {multiple} for model.fp8"
        raise ValueError(
            f"model.ffn_hidden_size = {model.ffn_hidden_size} must be a multiple of "
            f"tensor_model_parallel_size = {size}{fp8}"
        )


def _recompute(model: ModelConfig) -> dict[str, Any]:
    if model.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    modules = {"attention": ["core_attn"], "mlp": ["mlp"]}
    if model.recompute in modules:
        return {"recompute_granularity": "selective", "recompute_modules": modules[model.recompute]}
    return {}


def _platform_settings(parallel: ParallelConfig) -> dict[str, Any]:
    """Fusions and pipeline transport: compiled and batched on a GPU, plain on the CPU."""
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    if has_gpu():
        return {
            "bias_dropout_fusion": True,
            "bias_activation_fusion": True,
            "overlap_p2p_comm": interleaved,
            "batch_p2p_comm": not interleaved,  # Megatron refuses both at once
            "deallocate_pipeline_outputs": True,  # what was sent on: 1.4 GB a rank in the 130B recipes
            "gradient_accumulation_fusion": importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None,
        }
    settings: dict[str, Any] = {
        "use_cpu_initialization": True,  # also makes initial weights independent of the tensor-parallel size
        # Megatron's fusions are `torch.compile` at import: minutes of compiling here, for no gain.
        "bias_dropout_fusion": False,
        "bias_activation_fusion": False,
        "masked_softmax_fusion": False,
        "apply_rope_fusion": False,
        "gradient_accumulation_fusion": False,
        "use_te_activation_func": True,  # means: take the layer spec's activation module, here `model.swiglu`
        # Freeing a sent output by shrinking its storage races with gloo's background send: silently wrong gradients.
        "deallocate_pipeline_outputs": False,
    }
    if interleaved:
        # Batched sends are matched by order alone on gloo: with two ranks the interleaved schedule mixes them up.
        settings.update(overlap_p2p_comm=True, batch_p2p_comm=False)
    return settings
