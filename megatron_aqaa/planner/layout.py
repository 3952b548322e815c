"""How a model is split: the `parallel` section, and which layers each pipeline stage holds."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import NamedTuple

from megatron_aqaa.planner.planned_model import PlannedModel


class Chunk(NamedTuple):
    """What one virtual pipeline stage holds."""

    num_layers: int
    embedding: bool = False
    head: bool = False


Stages = tuple[tuple[Chunk, ...], ...]
"""Chunks of each pipeline rank, in the order of its virtual stages."""


@dataclass(frozen=True)
class Layout:
    """The `parallel` section of a run; fields and defaults of `platform.ParallelConfig` (a test holds them together).

    Attributes:
        pipeline_model_parallel_layout: layers of each stage in Megatron's notation, stages in the order in which the
            data pass them: `"Et*10|t*11|t*12|t*10L"`, with E embedding, t transformer layer, L head and loss.
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int = 1
    sequence_parallel: bool = False
    pipeline_model_parallel_layout: str | None = None
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    tp_comm_overlap: bool = False

    def __post_init__(self) -> None:
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"parallel.{name} = {getattr(self, name)}: must be at least 1")
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ValueError("parallel.sequence_parallel needs tensor_model_parallel_size of at least 2; switch it off")
        virtual = self.virtual_pipeline_model_parallel_size
        if virtual is not None and (virtual < 2 or self.pipeline_model_parallel_size == 1):
            raise ValueError(
                f"parallel.virtual_pipeline_model_parallel_size = {virtual}: must be at least 2, with "
                "pipeline_model_parallel_size of at least 2; leave it out for one stage per process"
            )
        if self.overlap_param_gather and not self.overlap_grad_reduce:
            raise ValueError("parallel.overlap_param_gather needs overlap_grad_reduce: true, whose buckets it collects")
        if self.tp_comm_overlap and not self.sequence_parallel:
            raise ValueError("parallel.tp_comm_overlap needs sequence_parallel: true, whose transfers it hides")

    @property
    def model_parallel_size(self) -> int:
        """GPUs that hold one copy of the model and one sequence."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

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
    ranks = layout.pipeline_model_parallel_size
    if layout.pipeline_model_parallel_layout is not None:
        chunks = _named_stages(model, layout)
    else:
        total = ranks * layout.num_chunks
        if model.num_layers % total:
            raise ValueError(
                f"model.num_layers = {model.num_layers} must be a multiple of pipeline stages = {total}, or "
                "parallel.pipeline_model_parallel_layout must say which stage holds which layers"
            )
        chunks = [
            Chunk(model.num_layers // total, embedding=index == 0, head=index == total - 1) for index in range(total)
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


def parse_stages(text: str) -> list[str]:
    """Letters of each stage of Megatron's notation: `"Et*2|(tt|)*2tL"` gives `Ett`, `tt`, `tt`, `tL`.

    Written from the grammar that `megatron.core.transformer.pipeline_parallel_layer_layout` describes: `|` ends a
    stage, commas mean nothing, `x*n` repeats a letter and `(...)*n` what is in the parentheses.

    Raises:
        ValueError: another letter than E, t, L.
    """
    letters = re.sub(r"[,\s]", "", text)
    letters = re.sub(r"\(([^)]+)\)\*(\d+)", lambda match: match[1] * int(match[2]), letters)
    letters = re.sub(r"([^)|*])\*(\d+)", lambda match: match[1] * int(match[2]), letters)
    unknown = set(letters) - set("EtL|")
    if unknown:
        raise ValueError(
            f"parallel.pipeline_model_parallel_layout = {text!r}: {''.join(sorted(unknown))!r} is none of E "
            "(embedding), t (layer), L (head), | (next stage), * (repeat)"
        )
    return letters.split("|")


def write_stages(layers: list[int]) -> str:
    """Megatron's notation of so many layers in each of two or more stages, embedding in the first, head in the last."""
    runs = [(count, len(list(group))) for count, group in itertools.groupby(layers[1:-1])]
    middle = "".join(f"(t*{count}|)*{length}" if length > 1 else f"t*{count}|" for count, length in runs)
    return f"Et*{layers[0]}|{middle}t*{layers[-1]}L"


def _named_stages(model: PlannedModel, layout: Layout) -> list[Chunk]:
    text = layout.pipeline_model_parallel_layout
    assert text is not None
    letters, ranks = parse_stages(text), layout.pipeline_model_parallel_size
    where = f"parallel.pipeline_model_parallel_layout = {text!r}"
    if len(letters) != ranks * layout.num_chunks:
        raise ValueError(
            f"{where}: has {len(letters)} stages, but pipeline_model_parallel_size × "
            f"virtual_pipeline_model_parallel_size is {ranks} × {layout.num_chunks}"
        )
    joined = "".join(letters)
    if joined != "E" + "t" * model.num_layers + "L":
        raise ValueError(
            f"{where}: must be one E, {model.num_layers} t (model.num_layers) and one L, in this order; found "
            f"{joined.count('E')} E, {joined.count('t')} t, {joined.count('L')} L"
        )
    return [Chunk(stage.count("t"), "E" in stage, "L" in stage) for stage in letters]
