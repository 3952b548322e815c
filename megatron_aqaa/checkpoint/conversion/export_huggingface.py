"""Plans an export: a `torch_dist` checkpoint becomes a Hugging Face directory of sharded safetensors."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_aqaa.checkpoint import safetensors_directory
from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.conversion.export_files import FilesBeside, exported_config, lacks_audio_tokens
from megatron_aqaa.checkpoint.conversion.export_pieces import exported_model, exported_pieces
from megatron_aqaa.checkpoint.conversion.huggingface_source import (
    FOLDER,
    extra_tensors,
    files_folder,
    recorded_files,
    recorded_names,
)
from megatron_aqaa.checkpoint.conversion.model_directory import MegatronModel, read_model
from megatron_aqaa.checkpoint.conversion.pieces import Pieces, whole_tensors
from megatron_aqaa.checkpoint.conversion.plan import SHARD_BYTES, Conversion, check_output, plain_values
from megatron_aqaa.checkpoint.mapping import CODEBOOK_TYPE, HF_HEAD
from megatron_aqaa.checkpoint.output_files import OutputFile, OutputTensor
from megatron_aqaa.checkpoint.stored_tensors import StoredTensor
from megatron_aqaa.model.config import ModelConfig


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        like: imported run or Hugging Face directory that configuration, tokenizer and file layout are taken from; None
            for what the run itself kept when it was imported.
        dtype: of the weights, as torch calls it; None keeps each tensor's.
        own_model_code: put this project's transformers model of Step-1 beside the weights, also where `like` has none
            or another.
        shard_bytes: about the size of a file, where `like` does not give the layout.
    """

    like: Path | None = None
    dtype: str | None = None
    own_model_code: bool = False
    shard_bytes: int = SHARD_BYTES


def plan_export(source: Path, output: Path, options: ExportOptions | None = None) -> Conversion:
    """Check everything that can be checked before tensors are read.

    Args:
        source: run or checkpoint.
        output: Hugging Face directory that is to be written.
        options: how.

    Raises:
        ValueError: the checkpoint is not complete, or holds what Hugging Face has no place for; the output is there;
            says what was found and what to do.
    """
    options = options or ExportOptions()
    check_output(output)
    found = read_model(source)
    like = options.like or (found.run if (found.run / FOLDER).is_dir() else None)
    model = exported_model(found)
    exported = exported_pieces(found, with_tied_head=_stores_tied_head(like, model))
    dtypes = {n: getattr(torch, options.dtype) if options.dtype else _dtype(p) for n, (_, p) in exported.items()}
    tensors = {name: OutputTensor(dtypes[name], shape, (Box.whole(shape),)) for name, (shape, _) in exported.items()}
    extra = extra_tensors(like) if like is not None else {}
    tensors |= {name: OutputTensor(it.dtype, it.shape, (Box.whole(it.shape),)) for name, it in extra.items()}
    recorded = recorded_files(like, tensors) if like is not None else None
    files = recorded or safetensors_directory.plan(tensors, options.shard_bytes)
    config = exported_config(found, model, like, _common_dtype(dtypes))
    grows = like is not None and lacks_audio_tokens(found, files_folder(like))
    beside = FilesBeside(found, like, config, recorded is not None, grows, options.own_model_code)
    return Conversion(
        settings={"verb": "export", "source": str(source), "options": plain_values(options)},
        source=found.run,
        source_files=(*found.stored.files, *sorted({c.path for it in extra.values() for c in it.chunks})),
        output=output,
        files=files,
        tensors=tensors,
        pieces={name: pieces for name, (_, pieces) in exported.items()} | whole_tensors(extra),
        finish=functools.partial(beside.write, (files, tensors)),
        notes=_notes(found, like, recorded, grows),
    )


def _stores_tied_head(like: Path | None, model: ModelConfig) -> bool:
    """Some models store a tied head a second time; they get it back."""
    if like is None or model.untie_embeddings_and_output_weights:
        return False
    return HF_HEAD in recorded_names(like)


def _dtype(pieces: Pieces) -> torch.dtype:
    source = next(iter(pieces.items)).source
    assert isinstance(source, StoredTensor)
    return source.dtype


def _common_dtype(dtypes: dict[str, torch.dtype]) -> str:
    """The narrowest: norms may be wider than the matrices."""
    return str(min(dtypes.values(), key=lambda dtype: dtype.itemsize)).removeprefix("torch.")


def _notes(found: MegatronModel, like: Path | None, recorded: list[OutputFile] | None, grows: bool) -> tuple[str, ...]:
    notes = []
    if like is None:
        notes.append("configuration written anew: the run was not imported, and there is no --like")
    elif recorded is None:
        notes.append(f"files are laid out anew: {like} has other tensors, shapes or dtypes")
    if grows:
        notes.append("the tokenizer files get the audio tokens")
    if CODEBOOK_TYPE in found.small_tables:
        notes.append("codebook vectors are folded into the embedding")
    return tuple(notes)
