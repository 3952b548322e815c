"""Weights of released vocoders of the CosyVoice-1 family: `flow.pt` and `hift.pt`.

Their tensors have the names of `cosyvoice.FlowModel` and `cosyvoice.HiftGenerator`, but for the three ways that torch
has of writing a convolution with weight norm, and the prefix that GAN training leaves.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig, FlowModel
from megatron_aqaa.vocoder.cosyvoice.hift import HiftConfig, HiftGenerator

Network = TypeVar("Network", bound=nn.Module)
Tensors = dict[str, Tensor]

COSYVOICE_300M = FlowConfig(vocab_size=4096, token_rate_hz=50.0, speaker_size=192)
"""The flow model of CosyVoice-300M; that of CosyVoice-300M-25Hz has a token rate of 25."""

_LENGTH, _DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"
_NAMED_AT_MOST = 5


def load_released_flow(path: Path, config: FlowConfig = COSYVOICE_300M, own: Collection[str] = ()) -> FlowModel:
    """Read a `flow.pt`.

    Args:
        path: a state dictionary written by torch.
        config: sizes of the network in the file.
        own: names of tensors that are not taken from the file but left as they begin, such as
            `input_embedding.weight` where other tokens are to be learned.

    Raises:
        ValueError: missing, damaged, or of another network; names the file and the tensors.
    """
    return _filled(_read(path), FlowModel(config), path, own)


def load_released_hift(path: Path, config: HiftConfig | None = None, own: Collection[str] = ()) -> HiftGenerator:
    """Read a `hift.pt`, with weight norm in its old or new form or folded away, or what GAN training saves of it.

    Args:
        path: a state dictionary written by torch.
        config: sizes of the network in the file; default the released ones at 22.05 kHz.
        own: as in `load_released_flow`.

    Raises:
        ValueError: as in `load_released_flow`.
    """
    return _filled(_read(path), HiftGenerator(config or HiftConfig()), path, own)


def _filled(tensors: Tensors, network: Network, path: Path, own: Collection[str]) -> Network:
    wanted = network.state_dict()
    _check_own(own, wanted)
    found = with_weight_norm(_without_prefix(tensors), wanted)
    wrong = _differences({k: v for k, v in wanted.items() if k not in own}, found, own)
    if wrong:
        raise ValueError(
            f"{path}: not the {type(network).__name__} that its configuration describes: {'; '.join(wrong)}; give the "
            f"configuration of this file"
        )
    network.load_state_dict({name: wanted[name] if name in own else found[name] for name in wanted})
    return network.eval()


def with_weight_norm(found: Mapping[str, Tensor], wanted: Collection[str]) -> Tensors:
    """Rename (`weight_g`, `weight_v`), or split plain weights, where `wanted` has a length and a direction."""
    renamed = {_modern(name): tensor for name, tensor in found.items()}
    for name in [name for name in wanted if name.endswith(_DIRECTION)]:
        layer = name.removesuffix(_DIRECTION)
        plain = renamed.pop(f"{layer}weight", None) if name not in renamed else None
        if plain is not None:
            renamed[name] = plain
            renamed[layer + _LENGTH] = torch.linalg.vector_norm(plain, dim=tuple(range(1, plain.dim())), keepdim=True)
    return renamed


def _modern(name: str) -> str:
    return re.sub(r"weight_g$", _LENGTH, re.sub(r"weight_v$", _DIRECTION, name))


def _without_prefix(found: Tensors) -> Tensors:
    """What GAN training saves has a `generator.` and a `discriminator.` half."""
    if not any(name.startswith("generator.") for name in found):
        return found
    return {name.removeprefix("generator."): tensor for name, tensor in found.items() if name.startswith("generator.")}


def _read(path: Path) -> Tensors:
    """Tensors of a file; the epoch and step that training notes beside them are left out."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise ValueError(f"{path}: damaged, or not written by torch.save: {str(error).splitlines()[0]}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a state dictionary")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], own: Collection[str]) -> list[str]:
    shapes = [
        f"{name} {list(found[name].shape)} where {list(tensor.shape)} is needed"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    parts = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys() - set(own)),
        "of another shape": shapes,
    }
    return [_listed(f"{len(names)} {what}", names) for what, names in parts.items() if names]


def _listed(title: str, names: list[str]) -> str:
    rest = len(names) - _NAMED_AT_MOST
    return f"{title} ({', '.join(names[:_NAMED_AT_MOST])}{f' and {rest} more' if rest > 0 else ''})"


def _check_own(own: Iterable[str], wanted: Collection[str]) -> None:
    unknown = [name for name in own if name not in wanted]
    if unknown:
        raise ValueError(f"own = {unknown}: the network has no such tensor")
