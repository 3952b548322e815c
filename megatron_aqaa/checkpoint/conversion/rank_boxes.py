"""Which part of each Megatron tensor every rank of a layout holds: the shards that this layout would save itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch

from megatron_aqaa.checkpoint import torch_dist_directory
from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.mapping import Row, Shape, row_of
from megatron_aqaa.checkpoint.output_files import OutputFile, OutputTensor
from megatron_aqaa.platform import ParallelConfig

Boxes = dict[int, tuple[Box, ...]]
"""Rank → its parts of one tensor. Ranks of one data-parallel copy, in Megatron's order: tensor before pipeline."""


def rank_boxes(name: str, shape: Shape, parallel: ParallelConfig) -> Boxes:
    """Parts of a tensor by rank; copies count once, for the lowest rank that has one.

    Raises:
        ValueError: rows, columns or layers do not divide over the layout.
    """
    row = row_of(name)
    found: Boxes = {}
    for stage, outer in _stages(name, shape, row, parallel):
        for part, box in _tensor_parallel(name, outer, row, parallel.tensor_model_parallel_size):
            rank = stage * parallel.tensor_model_parallel_size + part
            found[rank] = (*found.get(rank, ()), box)
    return found


def _stages(name: str, shape: Shape, row: Row | None, parallel: ParallelConfig) -> Iterator[tuple[int, Box]]:
    """Pipeline rank and part, one for each layer of a stacked tensor."""
    pipeline, virtual = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size or 1
    if row is None or row.stage != "layers":
        yield (pipeline - 1 if row is not None and row.stage == "last" else 0), Box.whole(shape)
        return
    if shape[0] % (pipeline * virtual):
        raise ValueError(f"{name}: {shape[0]} layers do not divide over {pipeline * virtual} pipeline stages; choose a "
                         "pipeline (and virtual pipeline) size that divides them")  # fmt: skip
    per_chunk = shape[0] // (pipeline * virtual)
    for layer in range(shape[0]):
        box = Box((layer, *(0 for _ in shape[1:])), (1, *shape[1:]))
        yield layer // per_chunk % pipeline, box


def _tensor_parallel(name: str, box: Box, row: Row | None, size: int) -> Iterator[tuple[int, Box]]:
    if row is None or row.split is None or (size == 1 and row.kind != "gated"):
        yield 0, box
        return
    axis = row.split + (row.stage == "layers")
    halves = 2 if row.kind == "gated" else 1  # a rank has its part of gate and its part of up
    extent = box.sizes[axis] // halves
    if extent % size:
        raise ValueError(f"{name}: {extent} {'rows' if row.split == 0 else 'columns'} do not divide over "
                         f"{size} tensor-parallel ranks; choose another tensor parallel size")  # fmt: skip
    for half in range(halves):
        for part in range(size):
            yield part, box.narrowed(axis, half * extent + part * (extent // size), extent // size)


def plan_ranks(
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, torch.dtype],
    parallel: ParallelConfig,
    shard_bytes: int,
    beside: torch_dist_directory.Beside,
) -> tuple[dict[str, OutputTensor], list[OutputFile]]:
    """Tensors, and files rank by rank, of a `torch_dist` checkpoint for a layout.

    Args:
        shapes: of all tensors.
        dtypes: of all tensors.
        parallel: the layout.
        shard_bytes: about the size of a file.
        beside: what else the checkpoint holds.
    """
    boxes = {name: rank_boxes(name, shape, parallel) for name, shape in shapes.items()}
    tensors = {
        name: OutputTensor(dtypes[name], shapes[name], tuple(box for part in ranks.values() for box in part))
        for name, ranks in boxes.items()
    }
    files: list[OutputFile] = []
    for rank in range(parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size):
        mine = {
            name: dataclasses.replace(tensors[name], boxes=ranks[rank])
            for name, ranks in boxes.items()
            if rank in ranks
        }
        own = beside if rank == 0 else dataclasses.replace(beside, objects={})
        if mine:
            files += torch_dist_directory.plan(mine, shard_bytes, own, rank)
    return tensors, files
