"""What must hold before models are merged: each check says what was found where, and what to do."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import torch

from megatron_aqaa.checkpoint.merge.config import MergeConfig, has_gradient
from megatron_aqaa.checkpoint.merge.parameters import RULES
from megatron_aqaa.checkpoint.stored_tensors import StoredModel

_NUM_NAMED = 3


def check_same_model(models: list[StoredModel]) -> None:
    """Raise ValueError unless all are versions of one model: tokenizer, settings, tensors and shapes."""
    first = models[0]
    said: dict[str, StoredModel] = {}
    for model in models:
        _check_tokenizer(first, model)
        for name, value in model.settings.items():
            known = said.setdefault(name, model)
            if known.settings[name] != value:
                raise ValueError(f"{known.path} and {model.path} differ in {name}: {known.settings[name]}, {value}; "
                                 "only versions of one model can be merged")  # fmt: skip
        _check_tensors(first, model)


def check_directories(models: list[StoredModel], output: Path) -> None:
    """Raise ValueError if a model is named twice, or stands where the result goes."""
    found: dict[Path, str] = {}
    for model in models:
        directory = model.directory.resolve()
        if directory in found:
            raise ValueError(f"{found[directory]} and {model.path} are one directory; name each model once")
        found[directory] = model.path
        if output.resolve() in (directory, *directory.parents):
            raise ValueError(f"{output}: holds {model.path}, which is merged; name another output")


def _check_tokenizer(first: StoredModel, other: StoredModel) -> None:
    shared = first.tokenizer.keys() & other.tokenizer.keys()
    different = sorted(name for name in shared if first.tokenizer[name] != other.tokenizer[name])
    if different:
        raise ValueError(f"{first.path} and {other.path} have different tokenizers ({', '.join(different)}): their ids "
                         "mean different things; merge models that were trained with one tokenizer")  # fmt: skip
    if first.tokenizer.keys() != other.tokenizer.keys():
        raise ValueError(f"{first.path} has the tokenizer files {_named(first.tokenizer)}, {other.path} has "
                         f"{_named(other.tokenizer)}: whether they are the same cannot be seen; copy the "
                         "tokenizer that each was trained with beside it")  # fmt: skip


def _check_tensors(first: StoredModel, other: StoredModel) -> None:
    for model, extra in ((first, first.tensors.keys() - other.tensors), (other, other.tensors.keys() - first.tensors)):
        if extra:
            raise ValueError(f"{first.path} and {other.path} hold different tensors: {len(extra)} only in {model.path} "
                             f"({_named(extra)}); only versions of one model can be merged")  # fmt: skip
    for name, tensor in first.tensors.items():
        there = other.tensors[name]
        if there.shape != tensor.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)} in {first.path}, {list(there.shape)} in "
                             f"{other.path}; only versions of one model can be merged")  # fmt: skip
        if there.dtype.is_floating_point != tensor.dtype.is_floating_point:
            raise ValueError(f"{name} is {tensor.dtype} in {first.path}, {there.dtype} in {other.path}")


def _named(names: Collection[str]) -> str:
    shown = sorted(names)[:_NUM_NAMED]
    return ", ".join(shown) + (", …" if len(names) > _NUM_NAMED else "") if names else "none"


def check_shards_can_merge(config: MergeConfig, fused: str | None) -> None:
    """Raise ValueError for what cannot be done on `torch_dist` tensors, which are fused and stack all layers.

    Args:
        config: of the merge.
        fused: a tensor that shows it, if there is one.
    """
    shown = f" ({fused} is query, key and value, or gate and up, in one)" if fused else ""
    if not RULES[config.merge_method].elementwise:
        able = [name for name, rules in RULES.items() if rules.elementwise]
        raise ValueError(f"{config.merge_method} looks at one weight matrix as a whole, but torch_dist checkpoints "
                         f"store several in one tensor{shown}, and all layers on top of each other: the result would "
                         "be another. Convert the checkpoints to Hugging Face safetensors and merge those, or use "
                         f"{' or '.join(able)}, which run on shards")  # fmt: skip
    if has_gradient(config):
        raise ValueError("a list of values is spread over the layers, but torch_dist checkpoints stack all layers in "
                         "one tensor. Give one value for each tensor, or convert the checkpoints to Hugging Face "
                         "safetensors and merge those")  # fmt: skip


def result_dtypes(config: MergeConfig, models: list[StoredModel]) -> dict[str, torch.dtype]:
    """The dtype of each tensor of the result; tensors that are not floating-point keep theirs."""
    chosen = config.out_dtype or config.dtype
    return {
        name: getattr(torch, chosen)
        if chosen and tensor.dtype.is_floating_point
        else _promoted(model.tensors[name].dtype for model in models)
        for name, tensor in models[0].tensors.items()
    }


def _promoted(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    first, *others = dtypes
    for dtype in others:
        first = torch.promote_types(first, dtype)
    return first
