"""The rows of the vocabulary tables (word embeddings, output head) that one process holds."""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch.nn import Parameter


class TableShard(NamedTuple):
    """A tensor-parallel rank's slice of one table."""

    weight: Parameter  # [rows, H]
    first_row: int  # token id of weight[0]
    tp_group: dist.ProcessGroup


def table_shards(model: GPTModel) -> list[TableShard]:
    """Slices of the embedding and of the head on this pipeline stage, none where it holds neither.

    A tied table is listed once per stage: the last stage of a pipeline holds a copy of its own.
    """
    layers = [model.embedding.word_embeddings] if model.pre_process else []
    if model.post_process and model.output_layer.weight is not None:
        layers.append(model.output_layer)
    return [TableShard(layer.weight, layer.tp_group.rank() * len(layer.weight), layer.tp_group) for layer in layers]
