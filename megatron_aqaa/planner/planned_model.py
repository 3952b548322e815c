"""The `model` section of a run as the planner reads it: `model.config` imports Megatron, five seconds of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

BYTES = {"fp32": 4, "bf16": 2}
VOCABULARY_MULTIPLE = 128
"""Rows of the tables are rounded up to this (`model/aqaa_model.py`)."""
CODEBOOK_TYPES, GROUP_POSITIONS = 3, 5
"""Rows of the two small tables that may be added to the embedding (`model/embedding.py`)."""

Recompute = Literal["none", "attention", "mlp", "full"]


@dataclass(frozen=True)
class PlannedModel:
    """Fields and defaults of `model.ModelConfig` (a test holds them together), and three of the planner's own.

    Attributes:
        gated_linear_unit: SwiGLU, as all models of this project; False for the GELU of published GPT runs.
        linear_bias: biases on all four products, the default of Megatron-LM's GPT.
        vocab_size: rows that enter the softmax.
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
    recompute: Recompute = "none"
    recompute_logits: bool = False
    gated_linear_unit: bool = True
    linear_bias: bool = False
    vocab_size: int = 74752

    def __post_init__(self) -> None:
        if self.params_dtype not in BYTES:
            raise ValueError(
                f"model.params_dtype = {self.params_dtype}: Megatron's distributed optimizer takes bf16 and fp32"
            )
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

    @cached_property
    def state(self) -> PlannedModel:
        """The model without what its parameters, gradients and optimizer do not depend on."""
        return replace(self, recompute="none", recompute_logits=False)

    @property
    def has_qkv_bias(self) -> bool:
        """Biases on query, key and value."""
        return self.add_qkv_bias or self.linear_bias

    @property
    def matmul_dtype(self) -> str:
        """Of the layers' products."""
        return self.params_dtype if self.fp8 is None else "fp8"

    @cached_property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @cached_property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.head_size * self.num_attention_heads

    @cached_property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return self.query_size + 2 * self.head_size * self.num_query_groups

    @cached_property
    def fc1_size(self) -> int:
        """Rows of the first FFN projection: gate and up in one for SwiGLU."""
        return self.ffn_hidden_size * (2 if self.gated_linear_unit else 1)

    @cached_property
    def rows(self) -> int:
        """Rows of embedding and head with their padding."""
        return math.ceil(self.vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @cached_property
    def layer_matrices(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of the four products of a layer: qkv, projection, fc1, fc2."""
        h = self.hidden_size
        return (
            (self.qkv_size, h),
            (h, self.query_size),
            (self.fc1_size, h),
            (h, self.ffn_hidden_size),
        )
