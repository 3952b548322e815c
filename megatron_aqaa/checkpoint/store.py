"""Training checkpoints: `torch_dist` directories that load at any parallel layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.api import CheckpointException

from megatron_aqaa.checkpoint.directories import complete_checkpoints, latest_checkpoint, require_checkpoint
from megatron_aqaa.checkpoint.integrity import require_whole
from megatron_aqaa.checkpoint.saving import save_checkpoint
from megatron_aqaa.model.aqaa_model import VOCABULARY_MULTIPLE
from megatron_aqaa.vocabulary import Vocabulary

_OTHER_VOCABULARY = (
    "If it is a text model that is to be given audio tokens, set training.grow_vocabulary: true; otherwise use the "
    "vocabulary file that it was trained with"
)
__all__ = [
    "complete_checkpoints",
    "latest_checkpoint",
    "load_checkpoint",
    "load_model",
    "load_text_model",
    "load_weights",
    "model_state",
    "require_checkpoint",
    "save_checkpoint",
    "unwrap",
    "vocabulary_state",
]
TABLES = ("embedding.word_embeddings.weight", "output_layer.weight")
SMALL_TABLES = ("embedding.codebook_type", "embedding.group_position")


def model_state(model_chunks: list[Any]) -> dict[str, Any]:
    """Sharded state of the model; virtual pipeline chunks get keys of their own."""
    modules = [unwrap(chunk) for chunk in model_chunks]
    names = ["model"] if len(modules) == 1 else [f"model{index}" for index in range(len(modules))]
    return {name: module.sharded_state_dict() for name, module in zip(names, modules, strict=True)}


def vocabulary_state(model_chunks: list[Any]) -> dict[str, Any]:
    """The id layout as plain values; `load_checkpoint` compares it with that of the checkpoint."""
    return {"vocabulary": dataclasses.asdict(unwrap(model_chunks[0]).vocabulary)}


def unwrap(module: Any) -> Any:
    """The model inside DDP."""
    return getattr(module, "module", module)


def load_checkpoint(directory: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Fill `state` from a checkpoint written at any parallel layout; all ranks call this.

    Args:
        directory: of the checkpoint.
        state: Megatron sharded state dict, with `vocabulary_state` in it.

    Raises:
        ValueError: not a complete checkpoint, a file is missing or truncated, tensors are missing or of another shape,
            or the ids mean something else; names the directory.
    """
    require_whole(require_checkpoint(directory))
    wanted = state["vocabulary"]
    _check_rows(directory, Vocabulary(**wanted))
    loaded = _load(directory, state)
    _check_vocabulary(directory, loaded.get("vocabulary"), wanted)
    return loaded


def _load(directory: Path, state: dict[str, Any]) -> dict[str, Any]:
    try:
        return dist_checkpointing.load(state, str(directory), strict=StrictHandling.RAISE_UNEXPECTED)
    except (dist_checkpointing.core.CheckpointingException, CheckpointException) as error:
        reason = str(error).strip().splitlines()[-1]  # the lines above are the traceback of a rank
        raise ValueError(f"{directory}: does not fit this model: {reason}") from error


def _check_rows(directory: Path, vocabulary: Vocabulary) -> None:
    """Megatron lets the rows of vocabulary tables differ: it fills up with zeros, or cuts, without a word.

    Checked on every rank alike, so that none waits for one that raised.
    """
    stored = dist_checkpointing.load_tensors_metadata(str(directory))
    rows = vocabulary.padded_size(VOCABULARY_MULTIPLE)
    for name in TABLES:
        found = stored[name].global_shape[0] if name in stored else rows
        if found != rows:
            raise ValueError(f"{directory}: {name} has {found} rows there, {rows} in this model. {_OTHER_VOCABULARY}")


def _check_vocabulary(directory: Path, found: dict[str, int] | None, wanted: dict[str, int]) -> None:
    """`found` is None for checkpoints that do not say what their ids mean."""
    if found is None or found == wanted:
        return
    different = [
        f"{name} = {found.get(name)} there, {here} here" for name, here in wanted.items() if found.get(name) != here
    ]
    raise ValueError(f"{directory}: another vocabulary ({'; '.join(different)}). {_OTHER_VOCABULARY}")


def load_weights(model_chunks: list[Any], loaded: dict[str, Any]) -> None:
    """Put the weights of a loaded state dict into `model_chunks`."""
    for name, chunk in zip(model_state(model_chunks), model_chunks, strict=True):
        unwrap(chunk).load_state_dict(loaded[name])


def load_model(model_chunks: list[Any], directory: Path) -> None:
    """Load the weights alone, from a checkpoint or from the newest one of a run, into `model_chunks`."""
    state = {**model_state(model_chunks), **vocabulary_state(model_chunks)}
    load_weights(model_chunks, load_checkpoint(require_checkpoint(directory), state))


def load_text_model(model_chunks: list[Any], directory: Path) -> None:
    """Load the weights of a text model into `model_chunks`, whose vocabulary begins with the text model's.

    Its rows of embedding and head come first, as many as the tables share; `model.vocabulary_growth` fills in the
    others. Small tables, which a text model does not have, start at zero, so that they change nothing at first.

    Raises:
        ValueError: not a complete checkpoint, it does not fit, or its vocabulary is not the text part of this one.
    """
    directory, vocabulary = require_checkpoint(directory), unwrap(model_chunks[0]).vocabulary
    require_whole(directory)
    stored = dist_checkpointing.load_tensors_metadata(str(directory))
    state = model_state(model_chunks)
    absent = {
        chunk: {name: weights.pop(name).data for name in SMALL_TABLES if name in weights and name not in stored}
        for chunk, weights in state.items()
    }
    loaded = _load(directory, state)
    _check_text_size(directory, stored, loaded.get("vocabulary"), vocabulary.text_size)
    for chunk, tables in absent.items():
        loaded[chunk].update({name: torch.zeros_like(table) for name, table in tables.items()})
    load_weights(model_chunks, loaded)


def _check_text_size(directory: Path, stored: dict[str, Any], found: dict[str, int] | None, text_size: int) -> None:
    rows = stored[TABLES[0]].global_shape[0]
    if rows < text_size or (found is not None and found["size"] != text_size):
        held = f"{rows} rows" if found is None else f"{found['size']} ids"
        raise ValueError(
            f"{directory}: holds {held}, but vocabulary.text_size = {text_size}: growing keeps exactly the text ids. "
            "Give the vocabulary that was made for this text model, or set training.grow_vocabulary: false"
        )
