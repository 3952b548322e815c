"""What an imported checkpoint keeps of the Hugging Face directory that it came from, so that export can write it back.

`huggingface/` in the run holds `files/` (configuration, tokenizer, model code, index), `headers.json` (the header of
every safetensors file, as it was) and `extra/` (tensors that the model here has no place for).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_aqaa.checkpoint import safetensors_directory
from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.output_files import OutputFile, OutputTensor
from megatron_aqaa.checkpoint.safetensors_file import CODES, file_with_header, header_text
from megatron_aqaa.checkpoint.stored_tensors import StoredTensor

FOLDER = "huggingface"
FILES, HEADERS, EXTRA = f"{FOLDER}/files", f"{FOLDER}/headers.json", f"{FOLDER}/extra"
CONFIG = "config.json"


def keep_source(source: Path, run: Path) -> None:
    """Copy everything but the elements from a Hugging Face directory into `run`."""
    (run / FILES).mkdir(parents=True, exist_ok=True)
    for file in safetensors_directory.files_beside(source):
        shutil.copyfile(file, run / FILES / file.name)
    index = source / safetensors_directory.INDEX
    if index.exists():
        shutil.copyfile(index, run / FILES / index.name)
    (run / HEADERS).write_text(json.dumps(_headers(source)) + "\n")


def copy_kept(run: Path, other: Path) -> None:
    """Copy what an imported run keeps, but for the extra tensors, into another run."""
    for file in (path for path in (run / FOLDER).rglob("*") if path.is_file() and run / EXTRA not in path.parents):
        target = other / file.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: there is none; names the file.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; a Hugging Face directory has one")
    return safetensors_directory.read_json(path)


def files_folder(path: Path) -> Path:
    """Where configuration and tokenizer lie, of an imported run or of a Hugging Face directory."""
    return path / FILES if (path / FILES).is_dir() else path


def extra_tensors(run: Path) -> dict[str, StoredTensor]:
    """Tensors that were kept aside."""
    folder = run / EXTRA
    return dict(safetensors_directory.scan(folder).tensors) if folder.is_dir() else {}


def recorded_files(path: Path, tensors: Mapping[str, OutputTensor]) -> list[OutputFile] | None:
    """Files with the headers of the source, None where `tensors` are not those that it had, in name, dtype and shape.

    Args:
        path: imported run, or Hugging Face directory.
        tensors: that are to be written.
    """
    headers = _headers(path)
    entries = {
        name: {k: v for k, v in json.loads(text).items() if k != "__metadata__"} for name, text in headers.items()
    }
    found = {key: (entry["dtype"], tuple(entry["shape"])) for file in entries.values() for key, entry in file.items()}
    if not headers or found != {name: (CODES[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}:
        return None
    return [file_with_header(name, text.encode(), entries[name]) for name, text in headers.items()]


def recorded_names(path: Path) -> set[str]:
    """Tensors of an imported run's source, or of a Hugging Face directory."""
    return {name for text in _headers(path).values() for name in json.loads(text)}


def _headers(path: Path) -> dict[str, str]:
    if (path / HEADERS).exists():
        headers: dict[str, str] = json.loads((path / HEADERS).read_text())
        return headers
    if not safetensors_directory.is_safetensors_directory(path):
        return {}
    return {file.name: header_text(file) for file in safetensors_directory.weight_files(path)}


def aside(extra: Mapping[str, StoredTensor], shard_bytes: int) -> tuple[dict[str, OutputTensor], list[OutputFile]]:
    """Tensors and files of what is kept beside the checkpoint."""
    tensors = {name: OutputTensor(it.dtype, it.shape, (Box.whole(it.shape),)) for name, it in extra.items()}
    files = safetensors_directory.plan(tensors, shard_bytes) if tensors else []
    return tensors, [dataclasses.replace(file, name=f"{EXTRA}/{file.name}") for file in files]


def finish_aside(run: Path, files: list[OutputFile], tensors: Mapping[str, OutputTensor]) -> None:
    """Write the index of what is kept beside the checkpoint, where it takes several files."""
    inside = [dataclasses.replace(file, name=Path(file.name).name) for file in files]
    safetensors_directory.finish(run / EXTRA, inside, tensors)
