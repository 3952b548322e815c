"""Training checkpoints: `torch_dist` directories that load at any parallel layout.

A run keeps `checkpoints/step_00001200/`. Megatron writes `metadata.json` last, so a directory counts only when
that file is there: a save that was killed is passed over and overwritten.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.api import CheckpointException

from megatron_aqaa.model.aqaa_model import VOCABULARY_MULTIPLE
from megatron_aqaa.vocabulary import Vocabulary

COMPLETE_MARKER = "metadata.json"
OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
_OTHER_VOCABULARY = (
    "If it is a text model that is to be given audio tokens, set training.grow_vocabulary: true; otherwise use the "
    "vocabulary file that it was trained with"
)
TABLES = ("embedding.word_embeddings.weight", "output_layer.weight")
SMALL_TABLES = ("embedding.codebook_type", "embedding.group_position")


def step_directory(run: Path, step: int) -> Path:
    """Directory of the checkpoint after `step` steps."""
    return run / "checkpoints" / f"step_{step:08d}"


def complete_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(marker.parent for marker in (run / "checkpoints").glob(f"step_*/{COMPLETE_MARKER}"))


def latest_checkpoint(run: Path) -> Path | None:
    """Newest complete checkpoint of a run, or None."""
    found = complete_checkpoints(run)
    return found[-1] if found else None


def require_checkpoint(path: Path) -> Path:
    """`path` itself if it is a checkpoint, else the newest one of the run `path`.

    Raises:
        ValueError: neither; the message says what was looked for.
    """
    if (path / COMPLETE_MARKER).exists():
        return path
    found = latest_checkpoint(path)
    if found is None:
        raise ValueError(f"{path}: no complete checkpoint here (looked for checkpoints/step_*/{COMPLETE_MARKER})")
    return found


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


def save_checkpoint(run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` (sharded tensors and plain values) as the checkpoint of `step`; all ranks call this.

    Args:
        run: run directory.
        step: optimizer steps done.
        state: Megatron sharded state dict.
        keep: complete checkpoints to keep; older ones are removed after this one is complete.
    """
    directory = step_directory(run, step)
    rank = torch.distributed.get_rank()
    if rank == 0:
        shutil.rmtree(directory, ignore_errors=True)  # left over from a save that was killed
        directory.mkdir(parents=True)
    torch.distributed.barrier()
    dist_checkpointing.save(state, str(directory))
    if rank == 0:
        for old in complete_checkpoints(run)[:-keep]:
            (old / COMPLETE_MARKER).unlink()  # first, so that a half-removed directory never counts
            shutil.rmtree(old)
    torch.distributed.barrier()
    return directory


def load_checkpoint(directory: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Fill `state` from a checkpoint written at any parallel layout; all ranks call this.

    Args:
        directory: of the checkpoint.
        state: Megatron sharded state dict, with `vocabulary_state` in it.

    Raises:
        ValueError: not a complete checkpoint, tensors are missing or of another shape, or the ids mean something else;
            names the directory.
    """
    require_checkpoint(directory)
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
