"""What this room takes for granted about the installed Megatron-Core: the places that it fills."""

from __future__ import annotations

import inspect
from typing import Any

from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_gpt_hands_the_last_stage_what_it_needs() -> None:
    assert {"labels", "loss_mask", "inference_context"} <= parameters(GPTModel._postprocess)
    assert {"input_ids", "position_ids", "attention_mask", "labels", "loss_mask"} <= parameters(GPTModel.forward)
    source = inspect.getsource(GPTModel.forward)
    assert "self._postprocess(" in source
    assert "self.embedding(input_ids=input_ids, position_ids=position_ids)" in inspect.getsource(GPTModel._preprocess)


def test_places_that_the_layer_spec_fills() -> None:
    assert "core_attention" in SelfAttentionSubmodules.__dataclass_fields__
    assert {"input_layernorm", "pre_mlp_layernorm", "mlp"} <= set(TransformerLayerSubmodules.__dataclass_fields__)
    assert {"layer_specs", "layer_norm"} <= set(TransformerBlockSubmodules.__dataclass_fields__)
    assert "activation_func" in MLPSubmodules.__dataclass_fields__
    assert "self.config.use_te_activation_func" in inspect.getsource(MLP.__init__)


def test_attributes_that_are_set_from_outside() -> None:
    source = inspect.getsource(ColumnParallelLinear.__init__)
    assert "self.sequence_parallel =" in source
    assert "self.allreduce_dgrad =" in source
    assert "self.word_embeddings =" in inspect.getsource(LanguageModelEmbedding.__init__)
