"""Hugging Face directories: safetensors files, their index, configuration and tokenizer."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa.checkpoint.output_files import OutputFile, OutputTensor
from megatron_aqaa.checkpoint.safetensors_file import plan_file, read_tensors
from megatron_aqaa.checkpoint.stored_tensors import StoredModel, StoredTensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MARKERS = (INDEX,)  # without these the output is none
# A slow tokenizer is all of its files; `tokenizer.json` says everything alone.
_TOKENIZER = "tokenizer.json"
_TOKENIZER_PARTS = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
# Same shapes, another meaning: the numbers of heads split the same matrix differently.
_CONFIG_KEYS = (
    "model_type",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_attention_groups",
    "head_dim",
    "rope_theta",
    "tie_word_embeddings",
)
_NOT_COPIED = (
    "merge_record.json",
    "merge_state.json",
    "conversion_record.json",
    "conversion_state.json",
    "trainer_state.json",
)
_COPIED_SUFFIXES = {".json", ".model", ".txt", ".jinja", ".py", ".tiktoken"}


def is_safetensors_directory(path: Path) -> bool:
    """Whether there are safetensors weights in `path`."""
    return (path / INDEX).exists() or (path / WEIGHTS).exists()


def scan(path: Path) -> StoredModel:
    """Find every tensor from the headers alone.

    Raises:
        ValueError: a file is missing, truncated or malformed, does not hold what the index says, or holds a dtype that
            is not known; names it.
    """
    weight_map, files = _weight_map(path), weight_files(path)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_tensors(file):
            if name in tensors:
                raise ValueError(f"{file}: tensor {name} is also in {tensors[name].chunks[0].path.name}")
            tensors[name] = tensor
    if weight_map:
        _check_index(path, weight_map, tensors)
        files.append(path / INDEX)
    taken = {*files, *files_beside(path)}
    left_out = sorted(file.name for file in path.iterdir() if file not in taken and file.name not in _NOT_COPIED)
    return StoredModel(str(path), path, tensors, _settings(path), _tokenizer(path), tuple(files), path, tuple(left_out))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a directory."""
    weight_map = _weight_map(path)
    return [path / name for name in sorted(set(weight_map.values()))] if weight_map else [path / WEIGHTS]


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor → file, empty where one file holds all."""
    if not (path / INDEX).exists():
        return {}
    if (path / WEIGHTS).exists() and WEIGHTS not in read_json(path / INDEX).get("weight_map", {}).values():
        raise ValueError(f"{path}: holds {WEIGHTS} and {INDEX}, which names other files: two models; remove one")
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path / INDEX}: has no weight_map; save the model again")
    for name in sorted(set(weight_map.values())):
        if not (path / name).exists():
            raise ValueError(f"{path / name}: named by {INDEX}, but not there; copy it again")
    return weight_map


def _check_index(path: Path, weight_map: dict[str, str], tensors: dict[str, StoredTensor]) -> None:
    wrong = sorted(weight_map.keys() ^ tensors.keys()) or sorted(
        name for name, tensor in tensors.items() if tensor.chunks[0].path != path / weight_map[name]
    )
    if wrong:
        name = wrong[0]
        named, held = weight_map.get(name), tensors[name].chunks[0].path.name if name in tensors else None
        raise ValueError(f"{path / INDEX}: {len(wrong)} tensor(s) are not where it says, such as {name}: in {held}, "
                         f"named for {named}; copy or save the model again")  # fmt: skip


def _settings(path: Path) -> dict[str, Any]:
    config = read_json(path / "config.json") if (path / "config.json").exists() else {}
    return {f"{key} of config.json": config[key] for key in _CONFIG_KEYS if key in config}


def _tokenizer(path: Path) -> dict[str, str]:
    names = (_TOKENIZER,) if (path / _TOKENIZER).exists() else _TOKENIZER_PARTS
    files = [path / name for name in names if (path / name).exists()]
    return {file.name: _digest(file) for file in (*files, *path.glob("*.tiktoken"))}


def _digest(path: Path) -> str:
    """Of the values, not of their layout, where the file is JSON; how a tokenizer pads and cuts is no part of it."""
    if path.suffix != ".json":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    values = {key: value for key, value in read_json(path).items() if key not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is something else; names the file.
    """
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); copy the file again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(values).__name__}")
    return values


def plan(tensors: Mapping[str, OutputTensor], shard_bytes: int, beside: object = None) -> list[OutputFile]:
    """Files for `tensors`, which stay whole, each of at most `shard_bytes` of elements or one tensor.

    Args:
        tensors: by name, in the order in which they are to be stored.
        shard_bytes: of a file.
        beside: as for `prepare`; needs no room in these files.
    """
    shards: list[dict[str, OutputTensor]] = []
    room = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        if not shards or size > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= size
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    return list(map(plan_file, names if len(shards) > 1 else [WEIGHTS], shards))


def files_beside(directory: Path) -> list[Path]:
    """Configuration, tokenizer and model code of a directory."""
    return sorted(
        file
        for file in directory.iterdir()
        if file.suffix in _COPIED_SUFFIXES and not file.name.endswith(".index.json") and file.name not in _NOT_COPIED
    )


def names_beside(beside: Path) -> list[str]:
    """What `prepare` writes, relative to the output."""
    return [file.name for file in files_beside(beside)]


def prepare(output: Path, tensors: Mapping[str, OutputTensor], beside: Path) -> None:
    """Copy what stands beside the weights, before them: with its last file of weights the directory is whole.

    Args:
        output: directory.
        tensors: whose dtype the configuration is to tell.
        beside: directory that configuration, tokenizer and model code come from.
    """
    for file in files_beside(beside):
        shutil.copyfile(file, output / file.name)
    if (output / "config.json").exists():
        _set_dtype(output / "config.json", {tensor.dtype for tensor in tensors.values()})


def finish(output: Path, files: list[OutputFile], tensors: Mapping[str, OutputTensor], beside: object = None) -> None:
    """Write the index of several files.

    Args:
        output: directory.
        files: as they were planned.
        tensors: that are in them.
        beside: as for `prepare`.
    """
    if len(files) > 1:
        total = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
        weight_map = {region.tensor: file.name for file in files for region in file.regions}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (output / INDEX).write_text(text + "\n")


def _set_dtype(path: Path, dtypes: set[torch.dtype]) -> None:
    """Transformers before 4.56 writes `torch_dtype`, later ones `dtype` and read both."""
    floating = [str(dtype).removeprefix("torch.") for dtype in dtypes if dtype.is_floating_point]
    config = read_json(path)
    if len(floating) == 1:
        keys = [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]
        path.write_text(json.dumps(config | dict.fromkeys(keys, floating[0]), indent=2) + "\n")
