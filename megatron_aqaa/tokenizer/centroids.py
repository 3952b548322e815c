"""Centroids of a codebook: the nearest one, and their file in the layout of the released `linguistic_tokenizer.npy`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

MADE_BY = "tools/train_tokenizer.py"


def save_centroids(centroids: torch.Tensor, path: Path) -> None:
    """Write [K, D] centroids as float32."""
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
        raise ValueError(f"{path}: no such file; {MADE_BY} makes it") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not an array file: {error}; {MADE_BY} makes it") from None
    if centroids.ndim != 2:
        raise ValueError(f"{path}: holds an array of shape {centroids.shape}; expected centroids [codes, channels]")
    return torch.from_numpy(centroids).float()


def nearest_centroid(hidden: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Index of the nearest centroid by Euclidean distance: [..., D], [K, D] → [...] int64."""
    flat = hidden.flatten(0, -2).float()
    with torch.autocast(hidden.device.type, enabled=False):  # in bf16 a neighbour would often win
        scores = flat @ centroids.T - 0.5 * centroids.square().sum(-1)  # the larger, the nearer
    return scores.argmax(-1).view(hidden.shape[:-1])
