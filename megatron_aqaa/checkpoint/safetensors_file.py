"""One safetensors file: its tensors found from the header alone, and a header for tensors that are to be written.

The format: 8 bytes with the length of the header (little-endian), the header (JSON: name → dtype, shape, data_offsets
from the end of the header), the elements. Written here by hand, because the safetensors package takes whole tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.output_files import OutputFile, OutputTensor, Region
from megatron_aqaa.checkpoint.stored_tensors import StoredChunk, StoredTensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in _DTYPES.items()}
"""Dtype → its name in a header."""


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and the byte where the elements start.

    Raises:
        ValueError: not a safetensors file, truncated within the header, or a name that is there twice.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            raise ValueError(f"{path}: not a safetensors file, or truncated: a header of {length} bytes is announced "
                             f"in a file of {path.stat().st_size}; copy it again")  # fmt: skip
        try:
            header = json.loads(file.read(length), object_pairs_hook=_once)
        except ValueError as error:
            raise ValueError(f"{path}: the safetensors header is not JSON ({error}); copy the file again") from None
    return header, 8 + length


def header_text(path: Path) -> str:
    """The header as it stands in the file, padding included."""
    _, start = read_header(path)
    with path.open("rb") as file:
        return file.read(start)[8:].decode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is in it twice")
    return found


def read_tensors(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Name and place of every tensor.

    Raises:
        ValueError: as for `read_header`; or an entry is malformed, of a dtype that is not known, or ends outside the
            file; names it.
    """
    header, start = read_header(path)
    size = path.stat().st_size
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path}: the header's entry of {name} is {entry}; save the model again") from None
        if code not in _DTYPES:
            raise ValueError(f"{path}: {name} has dtype {code}; known: {', '.join(_DTYPES)}. Convert it first")
        dtype = _DTYPES[code]
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{path}: {name} of shape {list(shape)} has {end - begin} bytes; save the model again")
        if start + end > size:
            raise ValueError(f"{path}: truncated: {name} ends at byte {start + end} of {size}; copy the file again")
        yield name, StoredTensor(dtype, shape, (StoredChunk(path, start + begin, Box.whole(shape)),))


def plan_file(name: str, tensors: Mapping[str, OutputTensor]) -> OutputFile:
    """A file of whole tensors, wider elements first, as the safetensors package does, so that each is aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
        begin, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[key] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return file_with_header(name, text, {key: entry for key, entry in header.items() if key != "__metadata__"})


def file_with_header(name: str, text: bytes, entries: Mapping[str, Any]) -> OutputFile:
    """A file with this very header.

    Args:
        name: of the file.
        text: the header as it is to stand there, padding included.
        entries: the tensors of `text`, parsed.
    """
    start = 8 + len(text)
    regions = tuple(
        Region(key, Box.whole(tuple(entry["shape"])), start + entry["data_offsets"][0])
        for key, entry in entries.items()
    )
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    return OutputFile(name, start + end, regions, ((0, len(text).to_bytes(8, "little") + text),))
