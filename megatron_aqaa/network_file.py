"""Files of trained networks outside the language model: weights with what is needed to build the network again."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch

from megatron_aqaa.config import parse_config

Network = TypeVar("Network", bound=torch.nn.Module)


def save_network(network: Any, path: Path, **facts: Any) -> None:
    """Write `network.config`, weights and `facts` (plain values, further arguments of the network's class)."""
    content = {"config": dataclasses.asdict(network.config), "facts": facts, "weights": network.state_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(content, path)


def save_whole(content: Any, path: Path) -> None:
    """`torch.save` that a killed process or a full disk cannot leave half: the previous file stays until it is done.

    Raises:
        OSError: it cannot be written; names the file.
    """
    partial = path.with_suffix(".partial")
    try:
        torch.save(content, partial)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter on a full disk
        partial.unlink(missing_ok=True)
        reason = str(error).splitlines()[0]
        raise OSError(f"{path}: cannot be written ({reason}); is the disk full? What was there is kept") from error
    os.replace(partial, path)


def load_network(network: type[Network], config: type, path: Path, made_by: str) -> Network:
    """Build `network(config, **facts)` from its file, on the CPU and in evaluation mode.

    Args:
        network: class of the network.
        config: class of its configuration.
        path: written by `save_network`.
        made_by: the command that makes such a file, for the error.

    Raises:
        ValueError: there is no such file, or it is damaged or holds another network.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; {made_by} makes it")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        model = network(parse_config(config, content["config"], str(path)), **content["facts"])
        model.load_state_dict(content["weights"])
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path}: not a {network.__name__}: {str(error).splitlines()[0]}; {made_by} makes it"
        ) from None
    except ValueError as error:
        raise ValueError(f"{error}; if it is of another version, {made_by} makes it anew") from None
    return model.eval()
