"""Files of a trained speech tokenizer: encoder weights with what is needed to build the encoder, and centroids."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from megatron_aqaa.config import parse_config

Encoder = TypeVar("Encoder", bound=torch.nn.Module)

_REMEDY = "make it with tools/train_tokenizer.py"


def save_encoder(encoder: Any, path: Path) -> None:
    """Write configuration, phone names and weights of a `LinguisticEncoder` or `SemanticEncoder`."""
    content = {
        "config": dataclasses.asdict(encoder.config),
        "phones": list(encoder.phones),
        "weights": encoder.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)


def load_encoder(encoder: type[Encoder], config: type, path: Path) -> Encoder:
    """Build `encoder` from its file, in evaluation mode.

    Args:
        encoder: class of the network, built from a `config` and phone names.
        config: its configuration class.
        path: written by `save_encoder`.

    Raises:
        ValueError: there is no such file, or it is damaged or holds another network.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; {_REMEDY}")
    try:
        content = torch.load(path, weights_only=True)
        model = encoder(parse_config(config, content["config"], str(path)), content["phones"])
        model.load_state_dict(content["weights"])
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a {encoder.__name__}: {str(error).splitlines()[0]}; {_REMEDY}") from None
    return model.eval()


def save_centroids(centroids: torch.Tensor, path: Path) -> None:
    """Write [K, D] centroids as float32, the layout of the released `linguistic_tokenizer.npy`."""
    partial = path.with_suffix(".partial.npy")
    np.save(partial, centroids.float().numpy())
    os.replace(partial, path)


def load_centroids(path: Path) -> torch.Tensor:
    """[K, D] float32.

    Raises:
        ValueError: there is no such file, or it does not hold a matrix.
    """
    try:
        centroids = np.load(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {_REMEDY}") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not an array file: {error}; {_REMEDY}") from None
    if centroids.ndim != 2:
        raise ValueError(f"{path}: holds an array of shape {centroids.shape}; expected centroids [codes, channels]")
    return torch.from_numpy(centroids).float()
