"""Training checkpoints: `torch_dist` directories that load at any parallel layout.

A run keeps `checkpoints/step_00001200/`. Megatron writes `metadata.json` last, so a directory counts only when
that file is there: a save that was killed is passed over and overwritten.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.api import CheckpointException

COMPLETE_MARKER = "metadata.json"
OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


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

    Raises:
        ValueError: not a complete checkpoint, or tensors are missing or of another shape; names the directory.
    """
    require_checkpoint(directory)
    try:
        return dist_checkpointing.load(state, str(directory), strict=StrictHandling.RAISE_UNEXPECTED)
    except (dist_checkpointing.core.CheckpointingException, CheckpointException) as error:
        reason = str(error).strip().splitlines()[-1]  # the lines above are the traceback of a rank
        raise ValueError(f"{directory}: does not fit this model: {reason}") from error


def load_weights(model_chunks: list[Any], loaded: dict[str, Any]) -> None:
    """Put the weights of a loaded state dict into `model_chunks`."""
    for name, chunk in zip(model_state(model_chunks), model_chunks, strict=True):
        unwrap(chunk).load_state_dict(loaded[name])


def load_model(model_chunks: list[Any], directory: Path) -> None:
    """Load the weights alone, from a checkpoint or from the newest one of a run, into `model_chunks`."""
    load_weights(model_chunks, load_checkpoint(require_checkpoint(directory), model_state(model_chunks)))
