"""Weights of `torch_dist` checkpoints, without their optimizer: found in the files of every rank, and writing the like.

A shard is an archive of `torch.save` (`torch_dist_metadata`); its elements are written in rows between the archive's
first and last bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_aqaa.checkpoint.output_files import OutputFile, OutputTensor, Region
from megatron_aqaa.checkpoint.saved_tensor import archive_ends
from megatron_aqaa.checkpoint.stored_tensors import StoredModel, StoredTensor
from megatron_aqaa.checkpoint.torch_dist_metadata import (
    Objects,
    object_places,
    stored_objects,
    stored_tensor,
    write_metadata,
)

MARKER = "metadata.json"
COMMON = "common.pt"
CONFIGURATION = "config.yaml"
CHECKPOINT = "checkpoints/step_00000000"  # so that the output is a run at step 0, which every command takes
MARKERS = (f"{CHECKPOINT}/{MARKER}",)  # without these the output is none
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_OPTIMIZER = ("optimizer.", "chained_")
_FUSED = ("linear_qkv", "linear_fc1")
_KEPT_COMMON = ("vocabulary", "content_metadata")
# Same shapes, another meaning.
_CONFIG_KEYS = ("num_attention_heads", "num_query_groups", "position_embedding", "alibi_slope_scale", "rotary_base")


@dataclass(frozen=True)
class Beside:
    """What a checkpoint holds beside its tensors.

    Attributes:
        common: plain values that every rank loads, above all `vocabulary`.
        objects: pickled objects that modules keep beside their weights (`_extra_state`).
        configuration: of the run; None if it is not known.
    """

    common: dict[str, Any]
    objects: Objects = field(default_factory=dict)
    configuration: dict[str, Any] | None = None


def is_torch_dist_directory(path: Path) -> bool:
    """Whether `path` looks like a checkpoint, or like a run that has some."""
    return (path / MARKER).exists() or (path / "checkpoints").is_dir()


def scan(path: Path) -> StoredModel:
    """Find every shard of the weights of a checkpoint, or of the newest one of the run `path`.

    Raises:
        ValueError: no complete checkpoint, a file is missing or truncated, or shards leave a part out.
    """
    # Late: it brings in Megatron, 3 s and 75 MB that a merge of safetensors need not pay.
    from megatron_aqaa.checkpoint.store import require_checkpoint

    directory = require_checkpoint(path)
    metadata, common = _described(directory)
    kept = {key: common[key] for key in _KEPT_COMMON if key in common}
    beside = Beside(kept, stored_objects(directory, metadata), _configuration(directory))
    tensors = {
        name: stored_tensor(directory, name, metadata)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith(_OPTIMIZER)
    }
    files = {directory / info.relative_path for info in metadata.storage_data.values()}
    return StoredModel(
        path=str(path),
        directory=directory,
        tensors=tensors,
        settings=_settings(beside),
        tokenizer={},
        files=(directory / ".metadata", directory / COMMON, *sorted(files)),
        beside=beside,
        left_out=tuple(sorted({*_left_out(metadata, tensors, beside), *(common.keys() - kept)})),
    )


def _described(directory: Path) -> tuple[Metadata, dict[str, Any]]:
    """`.metadata`, and the plain values that every rank loads."""
    from megatron.core import dist_checkpointing

    _check_backend(directory / MARKER)
    try:
        metadata = FileSystemReader(directory).read_metadata()
        common: dict[str, Any] = dist_checkpointing.load_common_state_dict(str(directory))
    except Exception as error:  # whatever the unpickler makes of other bytes
        raise ValueError(f"{directory}: .metadata or {COMMON} cannot be read ({error}); copy it again") from None
    return metadata, common


def _check_backend(marker: Path) -> None:
    try:
        backend = json.loads(marker.read_bytes()).get("sharded_backend")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{marker}: cannot be read ({error}); copy the checkpoint again") from None
    if backend != "torch_dist":
        raise ValueError(f"{marker.parent}: stored as {backend}, not torch_dist; save it again with Megatron-Core "
                         "0.16.1")  # fmt: skip


def _configuration(directory: Path) -> dict[str, Any] | None:
    """What tools/train.py writes beside the checkpoints."""
    path = directory.parent.parent / CONFIGURATION
    if not path.exists():
        return None
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error}); copy the configuration of the run again") from None
    return values if isinstance(values, dict) else None


def _settings(beside: Beside) -> dict[str, Any]:
    configuration = beside.configuration or {}
    model = configuration.get("model", {})
    found = {f"model.{key} of {CONFIGURATION}": model[key] for key in _CONFIG_KEYS if key in model}
    if beside.common.get("vocabulary"):
        found["vocabulary"] = beside.common["vocabulary"]
    text = Path(configuration.get("vocabulary", "")).with_name("text.model") if "vocabulary" in configuration else None
    if text is not None and text.exists():
        found["text tokenizer (sha256)"] = hashlib.sha256(text.read_bytes()).hexdigest()
    return found


def _left_out(metadata: Metadata, tensors: Mapping[str, StoredTensor], beside: Beside) -> Iterator[str]:
    kept = {*tensors, *(index.fqn for index in beside.objects)}
    for name in metadata.state_dict_metadata.keys() - kept:
        yield "optimizer" if name.startswith(_OPTIMIZER) else name.split("/")[0]


def fused_tensor(model: StoredModel) -> str | None:
    """A tensor that holds several weight matrices in one, or None."""
    return next((name for name in model.tensors if any(part in name for part in _FUSED)), None)


def plan(tensors: Mapping[str, OutputTensor], shard_bytes: int, beside: Beside, rank: int = 0) -> list[OutputFile]:
    """Files for `tensors`, one archive for each of their boxes, of about `shard_bytes` or one box each.

    Args:
        tensors: by Megatron's names, in the order in which they are to be stored.
        shard_bytes: of a file.
        beside: its objects go before the first tensor.
        rank: that would save them; part of the files' names.
    """
    files: list[OutputFile] = []
    regions: list[Region] = []
    literals = [(info.offset, beside.objects[index]) for index, info in object_places(beside.objects)]
    size = sum(map(len, beside.objects.values()))
    for name, box in ((name, box) for name, tensor in tensors.items() for box in tensor.boxes):
        dtype = tensors[name].dtype
        head, tail = archive_ends(box.sizes, dtype)
        elements = box.num_elements * dtype.itemsize
        if regions and size + elements > shard_bytes:
            files.append(_file(rank, len(files), size, regions, literals))
            regions, literals, size = [], [], 0
        start = size + len(head)
        regions.append(Region(name, box, start))
        literals += [(size, head), (start + elements, tail)]
        size = start + elements + len(tail)
    return [*files, _file(rank, len(files), size, regions, literals)]


def _file(rank: int, number: int, size: int, regions: list[Region], literals: list[tuple[int, bytes]]) -> OutputFile:
    return OutputFile(f"{CHECKPOINT}/__{rank}_{number}.distcp", size, tuple(regions), tuple(literals))


def names_beside(beside: Beside) -> list[str]:
    """What `prepare` writes, relative to the output."""
    return [CONFIGURATION] if beside.configuration is not None else []


def prepare(output: Path, tensors: Mapping[str, OutputTensor], beside: Beside) -> None:
    """Write the run's configuration, which names `output` as its run.

    Args:
        output: directory of the run.
        tensors: as for `finish`.
        beside: that holds the configuration.
    """
    if beside.configuration is not None:
        values = beside.configuration | {"run": str(output)}
        (output / CONFIGURATION).write_text(yaml.safe_dump(values, sort_keys=False))


def finish(output: Path, files: list[OutputFile], tensors: Mapping[str, OutputTensor], beside: Beside) -> None:
    """Write what makes the files a checkpoint, its marker last.

    Args:
        output: directory of the run.
        files: as they were planned.
        tensors: that are in them.
        beside: what else the checkpoint holds.
    """
    directory = output / CHECKPOINT
    write_metadata(directory, files, tensors, beside.objects)
    torch.save(beside.common, directory / COMMON)
    (directory / MARKER).write_text(json.dumps(_FORMAT))
