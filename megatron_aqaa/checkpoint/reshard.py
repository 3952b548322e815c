"""Plans a reshard: the same `torch_dist` checkpoint, cut into the shards of another parallel layout.

Any layout loads any checkpoint; one whose shards are the ranks' own is read by each rank from its own files alone.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import yaml

from megatron_aqaa.checkpoint import torch_dist_directory
from megatron_aqaa.checkpoint.conversion import Conversion, check_output
from megatron_aqaa.checkpoint.huggingface_source import EXTRA, FOLDER, aside, extra_tensors, finish_aside
from megatron_aqaa.checkpoint.import_huggingface import SHARD_BYTES, VOCABULARY_FILE
from megatron_aqaa.checkpoint.model_directory import MegatronModel, read_model
from megatron_aqaa.checkpoint.pieces import whole_tensors
from megatron_aqaa.checkpoint.rank_boxes import plan_ranks
from megatron_aqaa.checkpoint.stored_tensors import OutputFile, OutputTensor
from megatron_aqaa.model.config import to_transformer_config
from megatron_aqaa.platform import ParallelConfig

Weights = tuple[list[OutputFile], dict[str, OutputTensor]]


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
    extra_tensors_, extra_files = aside(extra, shard_bytes)
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
        files=[*files, *extra_files],
        tensors=tensors | extra_tensors_,
        pieces=whole_tensors(found.stored.tensors) | whole_tensors(extra),
        finish=functools.partial(_finish, found, output, layout, (files, tensors), (extra_files, extra_tensors_)),
        notes=(f"left out: {left_out}",) if left_out else (),
    )


def _finish(
    found: MegatronModel, output: Path, layout: dict[str, Any], weights: Weights, extra: Weights, work: Path
) -> None:
    files, tensors = weights
    if (found.run / FOLDER).is_dir():
        kept = shutil.ignore_patterns(Path(EXTRA).name)
        shutil.copytree(found.run / FOLDER, work / FOLDER, ignore=kept, dirs_exist_ok=True)
        finish_aside(work, *extra)
    found.vocabulary.save(work / VOCABULARY_FILE)
    configuration = found.stored.beside.configuration or {}
    values = {
        **configuration,
        "run": str(output),
        "vocabulary": str(output / VOCABULARY_FILE),
        "parallel": {**(configuration.get("parallel") or {}), **layout},
    }
    (work / torch_dist_directory.CONFIGURATION).write_text(yaml.safe_dump(values, sort_keys=False))
    torch_dist_directory.finish(work, files, tensors, found.stored.beside)
