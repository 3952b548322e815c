"""Parameters of a pipeline chunk on one tensor-parallel rank, in the order in which Megatron registers them."""

from __future__ import annotations

from typing import NamedTuple

from megatron_aqaa.planner.layout import Chunk, Layout
from megatron_aqaa.planner.planned_model import CODEBOOK_TYPES, GROUP_POSITIONS, PlannedModel


class Parameter(NamedTuple):
    """One parameter tensor of a rank.

    Attributes:
        name: as in the model.
        numel: elements on this rank.
        shared: the embedding of a tied model whose head lies on another stage; it gets a bucket of its own.
    """

    name: str
    numel: int
    shared: bool = False


def chunk_parameters(model: PlannedModel, layout: Layout, chunk: Chunk) -> list[Parameter]:
    """As `module.named_parameters()` yields them with Megatron's local layer spec."""
    tied_apart = not model.untie_embeddings_and_output_weights and layout.pipeline_model_parallel_size > 1
    table = model.rows // layout.tensor_model_parallel_size * model.hidden_size
    parameters: list[Parameter] = []
    if chunk.embedding:
        parameters += _small_tables(model)
        parameters.append(Parameter("embedding.word_embeddings.weight", table, tied_apart))
    layer = _layer_parameters(model, layout.tensor_model_parallel_size)
    parameters += [
        Parameter(f"decoder.layers.{index}.{name}", numel)
        for index in range(chunk.num_layers)
        for name, numel in layer.items()
    ]
    if chunk.head:
        parameters.append(Parameter("decoder.final_layernorm.weight", model.hidden_size))
        if model.untie_embeddings_and_output_weights or tied_apart:
            parameters.append(Parameter("output_layer.weight", table, tied_apart))
    return parameters


def count_parameters(model: PlannedModel) -> int:
    """All parameters of the model, each counted once; rows of padding included."""
    whole = chunk_parameters(model, Layout(), Chunk(model.num_layers, embedding=True, head=True))
    return sum(parameter.numel for parameter in whole)


def _small_tables(model: PlannedModel) -> list[Parameter]:
    """The two learned tables that may be added to the embedding; whole on every tensor-parallel rank."""
    tables = []
    if model.codebook_type_embedding:
        tables.append(Parameter("embedding.codebook_type", CODEBOOK_TYPES * model.hidden_size))
    if model.group_position_embedding:
        tables.append(Parameter("embedding.group_position", GROUP_POSITIONS * model.hidden_size))
    return tables


def _layer_parameters(model: PlannedModel, tensor_size: int) -> dict[str, int]:
    qkv, projection, fc1, fc2 = (outputs * inputs // tensor_size for outputs, inputs in model.layer_matrices)
    sizes = {
        "input_layernorm.weight": model.hidden_size,
        "self_attention.linear_proj.weight": projection,
        "self_attention.linear_proj.bias": model.hidden_size if model.linear_bias else 0,
        "self_attention.linear_qkv.weight": qkv,
        "self_attention.linear_qkv.bias": model.qkv_size // tensor_size if model.has_qkv_bias else 0,
        "pre_mlp_layernorm.weight": model.hidden_size,
        "mlp.linear_fc1.weight": fc1,
        "mlp.linear_fc1.bias": model.fc1_size // tensor_size if model.linear_bias else 0,
        "mlp.linear_fc2.weight": fc2,
        "mlp.linear_fc2.bias": model.hidden_size if model.linear_bias else 0,
    }
    return {name: numel for name, numel in sizes.items() if numel}
