"""How a model is split: the `parallel` section, and which layers each pipeline stage holds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

from megatron_aqaa.planner.planned_model import PlannedModel
from megatron_aqaa.platform import ParallelConfig


class Chunk(NamedTuple):
    """What one virtual pipeline stage holds."""

    num_layers: int
    embedding: bool = False
    head: bool = False


Stages = tuple[tuple[Chunk, ...], ...]
"""Chunks of each pipeline rank, in the order of its virtual stages."""


@dataclass(frozen=True)
class Layout(ParallelConfig):
    """The `parallel` section of a run, as the planner speaks of it."""

    @property
    def num_chunks(self) -> int:
        """Virtual stages of one pipeline rank."""
        return self.virtual_pipeline_model_parallel_size or 1

    @property
    def label(self) -> str:
        """Short name, as `TP8 PP8×11 CP1 SP`."""
        pipeline = f"PP{self.pipeline_model_parallel_size}" + (f"×{self.num_chunks}" if self.num_chunks > 1 else "")
        uneven = " uneven" if self.pipeline_model_parallel_layout else ""
        sequence = " SP" if self.sequence_parallel else ""
        context = f" CP{self.context_parallel_size}" if self.context_parallel_size > 1 else ""
        return f"TP{self.tensor_model_parallel_size} {pipeline}{uneven}{context}{sequence}"


def stages(model: PlannedModel, layout: Layout) -> Stages:
    """Chunks of each pipeline rank.

    Raises:
        ValueError: layers, heads, FFN or vocabulary do not divide over the layout, or the layout's stages are not
            those of the model.
    """
    check_divisible(model, layout)
    ranks, last = layout.pipeline_model_parallel_size, layout.num_stages - 1
    chunks = [
        Chunk(count, embedding=index == 0, head=index == last)
        for index, count in enumerate(layout.layers_by_stage(model.num_layers))
    ]
    return tuple(tuple(chunks[rank::ranks]) for rank in range(ranks))


def check_divisible(model: PlannedModel, layout: Layout) -> None:
    """Raises ValueError unless every matrix of a layer and the tables can be cut into tensor-parallel slices."""
    tensor = layout.tensor_model_parallel_size
    for name, value in (
        ("model.num_attention_heads", model.num_attention_heads),
        ("model.ffn_hidden_size", model.ffn_hidden_size),
        ("rows of the vocabulary, padded,", model.rows),
    ):
        if value % tensor:
            raise ValueError(f"{name} = {value} must be a multiple of tensor_model_parallel_size = {tensor}")
    groups = model.num_query_groups
    if max(groups, tensor) % min(groups, tensor):
        raise ValueError(
            f"model.num_query_groups = {groups} and tensor_model_parallel_size = {tensor}: one must divide the other"
        )


def write_stages(layers: list[int]) -> str:
    """Megatron's notation of so many layers in each of two or more stages, embedding in the first, head in the last."""
    runs = [(count, len(list(group))) for count, group in itertools.groupby(layers[1:-1])]
    middle = "".join(f"(t*{count}|)*{length}" if length > 1 else f"t*{count}|" for count, length in runs)
    return f"Et*{layers[0]}|{middle}t*{layers[-1]}L"
