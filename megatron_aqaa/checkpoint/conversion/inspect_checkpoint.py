"""What a checkpoint holds, in lines to read: configuration, parameters, dtypes, layout, ids, and what misfits."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa.checkpoint import safetensors_directory, torch_dist_directory
from megatron_aqaa.checkpoint.checksums import RECORD, read_record
from megatron_aqaa.checkpoint.conversion.families import read_config
from megatron_aqaa.checkpoint.conversion.huggingface_source import CONFIG, EXTRA, extra_tensors
from megatron_aqaa.checkpoint.conversion.model_directory import read_model
from megatron_aqaa.checkpoint.mapping import HF_HEAD, check_tensors, huggingface_shapes, listed
from megatron_aqaa.checkpoint.stored_tensors import StoredModel, StoredTensor
from megatron_aqaa.model.config import ModelConfig

_OF_A_RUN = ("params_dtype", "recompute", "recompute_logits")  # which `config.json` does not have


def describe_checkpoint(path: Path) -> list[str]:
    """Lines that tell about a Hugging Face directory, a checkpoint, or the newest one of a run.

    Raises:
        ValueError: there is none, or a file is damaged.
    """
    if safetensors_directory.is_safetensors_directory(path):
        stored = safetensors_directory.scan(path)
        return [f"{path}: Hugging Face safetensors", *_common(stored), *_huggingface(path, stored), *_record(path)]
    if torch_dist_directory.is_torch_dist_directory(path):
        stored = torch_dist_directory.scan(path)
        run = stored.directory.parent.parent
        return [f"{stored.directory}: torch_dist", *_common(stored), *_megatron(path, stored), *_record(run)]
    raise ValueError(f"{path}: holds neither safetensors weights nor a torch_dist checkpoint; give a directory with "
                     f"{safetensors_directory.WEIGHTS} or its index, a checkpoint, or a run")  # fmt: skip


def _common(stored: StoredModel) -> Iterator[str]:
    dtypes: Counter[str] = Counter()
    for tensor in stored.tensors.values():
        dtypes[str(tensor.dtype).removeprefix("torch.")] += torch.Size(tensor.shape).numel()
    parameters = sum(dtypes.values())
    size = sum(torch.Size(it.shape).numel() * it.dtype.itemsize for it in stored.tensors.values())
    yield f"tensors: {len(stored.tensors)} with {parameters:,} elements, {size:,} bytes"
    yield f"dtypes: {', '.join(f'{name} {count:,}' for name, count in dtypes.most_common())}"
    if stored.left_out:
        yield f"beside the weights: {', '.join(stored.left_out)}"


def _huggingface(path: Path, stored: StoredModel) -> Iterator[str]:
    files = {chunk.path for tensor in stored.tensors.values() for chunk in tensor.chunks}
    yield f"layout: {len(files)} file(s), whole tensors"
    if not (path / CONFIG).exists():
        yield f"misfit: no {CONFIG}"
        return
    try:
        described = read_config(safetensors_directory.read_json(path / CONFIG), str(path / CONFIG))
    except ValueError as error:
        yield f"misfit: {error}"
        return
    yield f"family: {described.family}"
    yield f"vocabulary: {described.vocabulary_rows} rows, " + _ids(
        dataclasses.asdict(described.vocabulary) if described.vocabulary else None
    )
    yield from _model(described.model, but=_OF_A_RUN)
    wanted = huggingface_shapes(described.model, described.vocabulary_rows)
    optional = set() if described.model.untie_embeddings_and_output_weights else {HF_HEAD}
    yield from _misfits(path, stored.tensors, wanted, optional)


def _megatron(path: Path, stored: StoredModel) -> Iterator[str]:
    most = max(stored.tensors.items(), key=lambda item: len(item[1].chunks))
    files = {chunk.path for tensor in stored.tensors.values() for chunk in tensor.chunks}
    ranks = len({file.name.split("_")[2] for file in files})
    yield f"layout: {len(files)} file(s) of {ranks} rank(s), {most[0]} in {len(most[1].chunks)} parts"
    yield "vocabulary: " + _ids(stored.beside.common.get("vocabulary"))
    try:
        found = read_model(path)
    except ValueError as error:
        yield f"misfit: {error}"
        return
    yield from _model(found.model)
    extra = extra_tensors(found.run)
    if extra:
        yield f"kept aside in {EXTRA}: {listed(list(extra))}"


def _ids(vocabulary: Mapping[str, Any] | None) -> str:
    if not vocabulary:
        return "what the ids mean is not told"
    return ", ".join(f"{name} {value}" for name, value in vocabulary.items())


def _model(model: ModelConfig, but: tuple[str, ...] = ()) -> Iterator[str]:
    yield "model:"
    yield from (f"  {name}: {value}" for name, value in dataclasses.asdict(model).items() if name not in but)


def _misfits(
    path: Path, tensors: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]], optional: set[str]
) -> Iterator[str]:
    try:
        unknown = check_tensors(str(path), {name: it.shape for name, it in tensors.items()}, wanted)
    except ValueError as error:
        yield f"misfit: {error}"
        return
    unknown = [name for name in unknown if name not in optional]
    if unknown:
        count = sum(torch.Size(tensors[name].shape).numel() for name in unknown)
        yield f"misfit: {len(unknown)} tensor(s) with {count:,} elements have no place in the model: {listed(unknown)}"


def _record(root: Path) -> Iterator[str]:
    record = read_record(root)
    if record is not None:
        yield f"converted: {record['verb']} from {record['source']}, {record['finished']}; checksums in {RECORD}"
