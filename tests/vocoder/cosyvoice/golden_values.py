"""Weights and inputs of the goldens: numbers from names, the same wherever they are made."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn


def values(name: str, *shape: int) -> Tensor:
    """Evenly spread over −1 … 1 without a pattern: a hash of name and place (integer arithmetic, so exact)."""
    place = np.arange(math.prod(shape), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    start = zlib.crc32(name.encode()) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = place + np.uint64(start)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    unit = (mixed >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    return torch.from_numpy(unit).float().reshape(shape)


@torch.no_grad()
def fill(network: nn.Module) -> nn.Module:
    """Give every tensor of a network the values of its name; norms and lengths of weight norm lie around one."""
    for written, tensor in network.state_dict().items():
        name = written.replace("weight_g", "parametrizations.weight.original0")
        name = name.replace("weight_v", "parametrizations.weight.original1")
        near_one = name.endswith(("original0", "alpha")) or (tensor.dim() == 1 and name.endswith("weight"))
        scale = 0.3 if tensor.dim() < 2 else 1.7 / math.sqrt(math.prod(tensor.shape[1:]))
        tensor.copy_(values(name, *tensor.shape) * (0.3 if near_one else scale) + near_one)
    return network.eval()


@torch.no_grad()
def quiet(hift: nn.Module) -> nn.Module:
    """A generator whose waveform stays below the limit."""
    parameters = dict(hift.named_parameters())
    parameters["conv_post.parametrizations.weight.original0"].mul_(0.25)
    parameters["conv_post.bias"].sub_(2.0)
    return hift
