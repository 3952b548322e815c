"""Files of a trained vocoder network: weights with what is needed to build the network."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch

from megatron_aqaa.config import parse_config

Network = TypeVar("Network", bound=torch.nn.Module)

_REMEDY = "make it with tools/train_vocoder.py"


def save_network(network: Any, path: Path) -> None:
    """Write configuration and weights of an `AcousticModel` or a `Generator`."""
    content = {"config": dataclasses.asdict(network.config), "weights": network.state_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)


def load_network(network: type[Network], config: type, path: Path) -> Network:
    """Build `network` from its file, in evaluation mode.

    Args:
        network: its class, built from a `config`.
        config: class of the configuration.
        path: written by `save_network`.

    Raises:
        ValueError: there is no such file, or it is damaged or holds another network.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; {_REMEDY}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        model = network(parse_config(config, content["config"], str(path)))
        model.load_state_dict(content["weights"])
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a {network.__name__}: {str(error).splitlines()[0]}; {_REMEDY}") from None
    return model.eval()
