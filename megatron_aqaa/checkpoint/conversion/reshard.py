"""Plans a reshard: the same `torch_dist` checkpoint, cut into the shards of another parallel layout.

Any layout loads any checkpoint; one whose shards are the ranks' own is read by each rank from its own files alone.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from megatron_aqaa.checkpoint import torch_dist_directory
from megatron_aqaa.checkpoint.conversion.huggingface_source import FOLDER, aside, copy_kept, extra_tensors, finish_aside
from megatron_aqaa.checkpoint.conversion.model_directory import MegatronModel, read_model, write_description
from megatron_aqaa.checkpoint.conversion.pieces import whole_tensors
from megatron_aqaa.checkpoint.conversion.plan import SHARD_BYTES, Conversion, Weights, check_output
from megatron_aqaa.checkpoint.conversion.rank_boxes import plan_ranks
from megatron_aqaa.model.config import to_transformer_config
from megatron_aqaa.platform import ParallelConfig


def plan_reshard(source: Path, output: Path, parallel: ParallelConfig, shard_bytes: int = SHARD_BYTES) -> Conversion:
    """Check everything that can be checked before tensors are read.

    Args:
        source: run or checkpoint; its weights are taken, not its optimizer.
        output: run that is to be written.
        parallel: layout to cut for.
        shard_bytes: about the size of a file.

    Raises:
        ValueError: the checkpoint is not complete, the layout does not fit the model, or the output is there.
    """
    check_output(output)
    found = read_model(source)
    to_transformer_config(found.model, parallel)  # refuses layouts that the model does not divide over
    shapes = {name: tensor.shape for name, tensor in found.stored.tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in found.stored.tensors.items()}
    tensors, files = plan_ranks(shapes, dtypes, parallel, shard_bytes, found.stored.beside)
    extra = extra_tensors(found.run)
    aside_tensors, aside_files = aside(extra, shard_bytes)
    layout = {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
    }
    left_out = ", ".join(found.stored.left_out)
    return Conversion(
        settings={"verb": "reshard", "source": str(source), "parallel": layout, "shard_bytes": shard_bytes},
        source=found.run,
        source_files=(*found.stored.files, *sorted({c.path for it in extra.values() for c in it.chunks})),
        output=output,
        files=[*files, *aside_files],
        tensors=tensors | aside_tensors,
        pieces=whole_tensors(found.stored.tensors) | whole_tensors(extra),
        finish=functools.partial(_finish, found, output, layout, (files, tensors), (aside_files, aside_tensors)),
        notes=(f"left out: {left_out}",) if left_out else (),
    )


def _finish(
    found: MegatronModel, output: Path, layout: dict[str, Any], weights: Weights, extra: Weights, work: Path
) -> None:
    if (found.run / FOLDER).is_dir():
        copy_kept(found.run, work)
        finish_aside(work, *extra)
    configuration = found.stored.beside.configuration or {}
    parallel = {**(configuration.get("parallel") or {}), **layout}
    write_description(work, output, found.vocabulary, {**configuration, "parallel": parallel})
    torch_dist_directory.finish(work, *weights, found.stored.beside)
