"""Everything that can be known and checked before a merge reads tensors: models, output files, what is done already."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import megatron_aqaa
from megatron_aqaa.checkpoint import safetensors_directory, torch_dist_directory
from megatron_aqaa.checkpoint.merge.checks import (
    check_directories,
    check_same_model,
    check_shards_can_merge,
    result_dtypes,
)
from megatron_aqaa.checkpoint.merge.config import MergeConfig, tensor_settings
from megatron_aqaa.checkpoint.merge.parameters import RULES
from megatron_aqaa.checkpoint.merge.rows import MAX_BLOCK_ELEMENTS
from megatron_aqaa.checkpoint.merge.state import RECORD, Digests, earlier_merge
from megatron_aqaa.checkpoint.output_directory import check_disk
from megatron_aqaa.checkpoint.output_files import OutputFile, OutputTensor
from megatron_aqaa.checkpoint.stored_tensors import StoredModel
from megatron_aqaa.whole_file import partial_path

SHARD_BYTES = 2 << 30
_MIN_BLOCK_ELEMENTS = 1 << 10
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class MergePlan:
    """A merge that was checked and can run.

    Attributes:
        config: what is merged, how.
        output: directory.
        models: in the order that the method wants: the base model first, where it has one.
        donor: model that configuration, tokenizer and shard layout are taken from.
        layout: module that reads and writes this kind of checkpoint.
        files: of the result.
        names_beside: what stands beside these.
        tensors: of the result.
        settings: arguments of the method for each tensor.
        digest: of inputs and configuration.
        done: files that an earlier run finished: region → sha256 of each model's elements.
        replaced: files that an earlier merge of other inputs, or of another kind, left in the output, and that will go.
        block_elements: elements of a block.
        workers: threads.
        seed: of methods that choose at random.
    """

    config: MergeConfig
    output: Path
    models: list[StoredModel]
    donor: StoredModel
    layout: ModuleType
    files: list[OutputFile]
    names_beside: list[str]
    tensors: dict[str, OutputTensor]
    settings: dict[str, dict[str, Any]]
    digest: str
    done: dict[str, Digests]
    replaced: list[str]
    block_elements: int
    workers: int
    seed: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all merged elements."""
        return sum(map(self._bytes, self.files))

    @property
    def done_bytes(self) -> int:
        """Bytes of those that an earlier run wrote."""
        return sum(self._bytes(file) for file in self.files if file.name in self.done)

    @property
    def is_complete(self) -> bool:
        """Whether the output is this very merge, finished."""
        return len(self.done) == len(self.files) and (self.output / RECORD).exists()

    def _bytes(self, file: OutputFile) -> int:
        return sum(region.box.num_elements * self.tensors[region.tensor].dtype.itemsize for region in file.regions)


def plan_merge(
    config: MergeConfig, output: Path, memory_mib: int = 768, seed: int = 0, shard_bytes: int = SHARD_BYTES
) -> MergePlan:
    """Read the headers of all models and check everything that can be checked before tensors are read.

    Args:
        config: what is merged, how.
        output: directory; new, empty, or of an earlier run of this command.
        memory_mib: most memory for tensors, beside what Python and torch take themselves.
        seed: of methods that choose at random.
        shard_bytes: size of an output file, which is what an interruption can cost.

    Raises:
        ValueError: the models do not fit each other, the method or the disk; says what was found and what to do.
    """
    layout, models = _scan(config)
    check_directories(models, output)
    check_same_model(models)
    if layout is torch_dist_directory:
        check_shards_can_merge(config, torch_dist_directory.fused_tensor(models[0]))
    donor = next((model for model in models if model.path == config.base_model), models[0])
    if RULES[config.merge_method].needs_base:
        models = [donor, *(model for model in models if model is not donor)]
    dtypes = result_dtypes(config, models)
    tensors = {name: OutputTensor(dtypes[name], it.shape, it.boxes) for name, it in donor.tensors.items()}
    settings = {tensor: tensor_settings(config, tensor, depth) for tensor, depth in _depths(donor.tensors).items()}
    files = layout.plan(tensors, shard_bytes, donor.beside)
    workers = torch.get_num_threads()
    digest = merge_digest(config, models, files, seed)
    names_beside = layout.names_beside(donor.beside)
    done, replaced = earlier_merge(output, digest, files, names_beside)
    missing = [file.name for file in files if file.name not in done]
    freed = sum(map(_held_bytes, [*(output / name for name in replaced), *(partial_path(output / n) for n in missing)]))
    check_disk(output, sum(file.size for file in files if file.name in missing) - freed)
    block_elements = _block_elements(memory_mib, workers, len(models))
    return MergePlan(
        config=config,
        output=output,
        models=models,
        donor=donor,
        layout=layout,
        files=files,
        names_beside=names_beside,
        tensors=tensors,
        settings=settings,
        digest=digest,
        done=done,
        replaced=replaced,
        block_elements=block_elements,
        workers=workers,
        seed=seed,
    )


def _scan(config: MergeConfig) -> tuple[ModuleType, list[StoredModel]]:
    layouts = {path: _layout(Path(path)) for path in config.all_models()}
    if len(set(layouts.values())) > 1:
        kinds = ", ".join(f"{path}: {layout.__name__.rpartition('.')[2]}" for path, layout in layouts.items())
        raise ValueError(f"the models are stored in different ways ({kinds}); convert them to one first")
    layout = next(iter(layouts.values()))
    return layout, [layout.scan(Path(path)) for path in config.all_models()]


def _layout(path: Path) -> ModuleType:
    if not path.is_dir():
        raise ValueError(f"{path}: no such directory; models are named by their path on this machine")
    if safetensors_directory.is_safetensors_directory(path):
        return safetensors_directory
    if torch_dist_directory.is_torch_dist_directory(path):
        return torch_dist_directory
    raise ValueError(f"{path}: holds neither safetensors weights nor a torch_dist checkpoint; give a directory with "
                     f"{safetensors_directory.WEIGHTS} or its index, a checkpoint, or a run")  # fmt: skip


def _depths(tensors: dict[str, Any]) -> dict[str, float]:
    """Where each tensor's layer stands, 0 (first) to 1 (last); tensors outside the layers count as 0."""
    layers = {name: int(match[1]) if (match := _LAYER.search(name)) else None for name in tensors}
    last = max((layer for layer in layers.values() if layer is not None), default=0)
    return {
        name: 0.0 if layer is None else layer / last if last else 1.0  # one layer counts as the last, as in mergekit
        for name, layer in layers.items()
    }


def _block_elements(memory_mib: int, workers: int, num_models: int) -> int:
    """The hungriest method holds four float64 blocks of each model and eight others at a time."""
    worker_bytes = (memory_mib << 20) // workers
    elements = min(MAX_BLOCK_ELEMENTS, worker_bytes // (8 * (4 * num_models + 8)))
    if elements < _MIN_BLOCK_ELEMENTS:
        needed = -(-_MIN_BLOCK_ELEMENTS * 8 * (4 * num_models + 8) * workers >> 20)
        raise ValueError(f"{memory_mib} MiB of memory are too little for {num_models} models; give at least {needed}")
    return elements


def merge_digest(config: MergeConfig, models: list[StoredModel], files: list[OutputFile], seed: int) -> str:
    """By size, time and headers of the inputs: their elements are read, and digested, only once, when they merge."""
    inputs = [[(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in model.files] for model in models]
    outputs = [(file.name, file.size) for file in files]
    headers = [sorted(model.tensors.items()) for model in models]
    parts = [megatron_aqaa.__version__, config, seed, inputs, outputs, headers]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _held_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0
