"""Weights of `torch_dist` checkpoints: where the elements of every shard lie in its files, and writing the like.

Megatron-Core 0.16.1 stores a shard as what `torch.save` makes of it, one after the other in `__<rank>_<n>.distcp`;
`.metadata` says which part of which tensor is where. A shard is an uncompressed zip archive, so its elements are
found without loading it, and written in rows between the archive's first and last bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from megatron_aqaa.checkpoint.saved_tensor import archive_ends, read_without_elements
from megatron_aqaa.checkpoint.stored_tensors import (
    Box,
    OutputFile,
    OutputTensor,
    Region,
    StoredChunk,
    StoredModel,
    StoredTensor,
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
_UNREADABLE = (EOFError, OSError, RuntimeError, pickle.UnpicklingError)
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
    objects: dict[MetadataIndex, bytes] = field(default_factory=dict)
    configuration: dict[str, Any] | None = None


def is_torch_dist_directory(path: Path) -> bool:
    """Whether `path` looks like a checkpoint, or like a run that has some."""
    return (path / MARKER).exists() or (path / "checkpoints").is_dir()


def scan(path: Path) -> StoredModel:
    """Find every shard of the weights of a checkpoint, or of the newest one of the run `path`.

    Raises:
        ValueError: no complete checkpoint, a file is missing or truncated, or shards leave a part out.
    """
    # Late: these bring in Megatron, 3 s and 75 MB that a merge of safetensors need not pay.
    from megatron.core import dist_checkpointing

    from megatron_aqaa.checkpoint.store import require_checkpoint

    directory = require_checkpoint(path)
    backend = json.loads((directory / MARKER).read_text()).get("sharded_backend")
    if backend != "torch_dist":
        raise ValueError(f"{directory}: stored as {backend}, not torch_dist; save it again with Megatron-Core 0.16.1")
    try:
        metadata = FileSystemReader(directory).read_metadata()
        common = dist_checkpointing.load_common_state_dict(str(directory))
    except (*_UNREADABLE, dist_checkpointing.core.CheckpointingException) as error:
        raise ValueError(f"{directory}: .metadata or {COMMON} cannot be read ({error}); copy it again") from None
    kept = {key: common[key] for key in _KEPT_COMMON if key in common}
    beside = Beside(kept, _objects(directory, metadata), _configuration(directory))
    tensors = {
        name: _tensor(directory, name, entry, metadata)
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


def _configuration(directory: Path) -> dict[str, Any] | None:
    """What tools/train.py writes beside the checkpoints."""
    path = directory.parent.parent / CONFIGURATION
    if not path.exists():
        return None
    values = yaml.safe_load(path.read_text())
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


def _objects(directory: Path, metadata: Metadata) -> dict[MetadataIndex, bytes]:
    found = {}
    for index, info in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata) and "_extra_state" in index.fqn:
            _require_bytes(directory, info)
            with (directory / info.relative_path).open("rb") as file:
                file.seek(info.offset)
                found[index] = file.read(info.length)
    return found


def fused_tensor(model: StoredModel) -> str | None:
    """A tensor that holds several weight matrices in one, or None."""
    return next((name for name in model.tensors if any(part in name for part in _FUSED)), None)


def _tensor(directory: Path, name: str, entry: TensorStorageMetadata, metadata: Metadata) -> StoredTensor:
    chunks = tuple(
        StoredChunk(*_elements(directory, name, box, entry.properties.dtype, metadata), box)
        for box in (Box(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks)
    )
    if sum(chunk.box.num_elements for chunk in chunks) != math.prod(entry.size):
        raise ValueError(f"{directory}: the shards of {name} do not add up to its shape {list(entry.size)}; save again")
    return StoredTensor(entry.properties.dtype, tuple(entry.size), chunks)


def _elements(directory: Path, name: str, box: Box, dtype: torch.dtype, metadata: Metadata) -> tuple[Path, int]:
    """File and byte where the elements of a shard start."""
    info = metadata.storage_data.get(MetadataIndex(name, box.offsets))
    if info is None:
        raise ValueError(f"{directory}: .metadata does not say where the shard of {name} at {list(box.offsets)} is; "
                         "save it again")  # fmt: skip
    path = _require_bytes(directory, info)
    shard = read_without_elements(path, info.offset, info.length)
    if shard.dtype != dtype or tuple(shard.shape) != box.sizes or not shard.is_contiguous() or shard.storage_offset():
        raise ValueError(f"{path}: the shard of {name} at {list(box.offsets)} is {shard.dtype} of shape "
                         f"{list(shard.shape)}, not {dtype} of {list(box.sizes)}; save it again")  # fmt: skip
    return path, info.offset + shard.untyped_storage()._checkpoint_offset


def _require_bytes(directory: Path, info: _StorageInfo) -> Path:
    path = directory / info.relative_path
    size = path.stat().st_size if path.exists() else 0
    if size < info.offset + info.length:
        raise ValueError(f"{path}: missing or truncated: {info.offset + info.length} bytes wanted, {size} there; copy "
                         "the checkpoint again")  # fmt: skip
    return path


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
    literals = [(info.offset, beside.objects[index]) for index, info in _object_places(beside)]
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


def _object_places(beside: Beside) -> Iterator[tuple[MetadataIndex, _StorageInfo]]:
    offset = 0
    for index, data in beside.objects.items():
        yield index, _StorageInfo("__0_0.distcp", offset, len(data))
        offset += len(data)


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
    described: dict[str, Any] = {index.fqn: BytesStorageMetadata() for index in beside.objects}
    for name, tensor in tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)) for box in tensor.boxes]
        described[name] = TensorStorageMetadata(TensorProperties(tensor.dtype), torch.Size(tensor.shape), chunks)
    results = [WriteResult(index, info.length, info) for index, info in _object_places(beside)]
    results += [result for file in files for result in _written(file, tensors)]
    FileSystemWriter(directory).finish(Metadata(described), [results])
    torch.save(beside.common, directory / COMMON)
    (directory / MARKER).write_text(json.dumps(_FORMAT))


def _written(file: OutputFile, tensors: Mapping[str, OutputTensor]) -> Iterator[WriteResult]:
    starts = dict(file.literals)
    heads = {offset + len(data): offset for offset, data in file.literals}
    for region in file.regions:
        tensor = tensors[region.tensor]
        tail = region.start + region.box.num_elements * tensor.dtype.itemsize
        begin = heads[region.start]
        info = _StorageInfo(Path(file.name).name, begin, tail + len(starts[tail]) - begin)
        index = MetadataIndex(region.tensor, region.box.offsets, tensor.boxes.index(region.box))
        yield WriteResult(index, info.length, info)
