"""`.metadata` of a `torch_dist` checkpoint: which shard of which tensor is where, read and written.

Megatron-Core 0.16.1 stores a shard as what `torch.save` makes of it, one after the other in `__<rank>_<n>.distcp`. A
shard is an uncompressed zip archive, so its elements are found without loading it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemWriter
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

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.output_files import OutputFile, OutputTensor
from megatron_aqaa.checkpoint.saved_tensor import read_without_elements
from megatron_aqaa.checkpoint.stored_tensors import StoredChunk, StoredTensor

Objects = dict[MetadataIndex, bytes]
"""Pickled objects that modules keep beside their weights (`_extra_state`)."""


def stored_objects(directory: Path, metadata: Metadata) -> Objects:
    """The objects of modules, whole; raises ValueError where a file is missing or truncated."""
    found = {}
    for index, info in metadata.storage_data.items():
        if "_extra_state" in index.fqn and isinstance(
            metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata
        ):
            _require_bytes(directory, info)
            with (directory / info.relative_path).open("rb") as file:
                file.seek(info.offset)
                found[index] = file.read(info.length)
    return found


def stored_tensor(directory: Path, name: str, metadata: Metadata) -> StoredTensor:
    """Where the elements of every shard of a tensor are.

    Raises:
        ValueError: a file is missing or truncated, a shard is not what `.metadata` says, or a part is in none.
    """
    entry = metadata.state_dict_metadata[name]
    assert isinstance(entry, TensorStorageMetadata)
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


def object_places(objects: Objects) -> Iterator[tuple[MetadataIndex, _StorageInfo]]:
    """Where objects go: one after the other, before the first shard of rank 0."""
    offset = 0
    for index, data in objects.items():
        yield index, _StorageInfo("__0_0.distcp", offset, len(data))
        offset += len(data)


def write_metadata(
    directory: Path, files: list[OutputFile], tensors: Mapping[str, OutputTensor], objects: Objects
) -> None:
    """Write `.metadata` for files that are there.

    Args:
        directory: of the checkpoint.
        files: as they were planned.
        tensors: that are in them.
        objects: that are in the first.
    """
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
        index.fqn: BytesStorageMetadata() for index in objects
    }
    for name, tensor in tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)) for box in tensor.boxes]
        described[name] = TensorStorageMetadata(TensorProperties(tensor.dtype), torch.Size(tensor.shape), chunks)
    results = [WriteResult(index, info.length, info) for index, info in object_places(objects)]
    results += [result for file in files for result in _written(file, tensors)]
    FileSystemWriter(directory).finish(Metadata(described), [results])


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
