"""Paraformer's folder: sizes, weights of the encoder, and the normalisation of its features."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from megatron_aqaa.tokenizer.sanm import SanmConfig, SanmEncoder

STACKED_FRAMES = 7  # low-frame-rate window m
FRAMES_PER_CODE = 6  # low-frame-rate step n
_FIXED = {"input_layer": "pe_online", "normalize_before": True, "sanm_shfit": 0, "selfattention_layer_type": "sanm"}
_PREFIX = "encoder."


class Normalization(NamedTuple):
    """Features are shifted, then scaled; both [7 · 80]."""

    shift: Tensor
    scale: Tensor


class Paraformer(NamedTuple):
    """What is read of the folder."""

    encoder: SanmEncoder
    normalization: Normalization


def load_paraformer(folder: Path) -> Paraformer:
    """Read `config.yaml`, `model.pt` and `am.mvn` of a streaming Paraformer; its decoder is not needed.

    Raises:
        ValueError: a file is missing, damaged, or describes another network; names the file and what was found.
    """
    encoder = SanmEncoder(_config(folder / "config.yaml")).eval()
    _load_weights(encoder, folder / "model.pt")
    normalization = load_normalization(folder / "am.mvn")
    size = encoder.config.input_size
    if len(normalization.shift) != size:
        raise ValueError(f"{folder / 'am.mvn'}: {len(normalization.shift)} values; the encoder takes {size}")
    return Paraformer(encoder, normalization)


def save_paraformer(folder: Path, paraformer: Paraformer) -> None:
    """Write the three files that `load_paraformer` reads, as funasr names and lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = vars(paraformer.encoder.config)
    encoder_conf = {name: sizes[name] for name in _SIZES if name != "input_size"} | _FIXED
    frontend = {"fs": 16000, "window": "hamming", "n_mels": sizes["input_size"] // STACKED_FRAMES}
    frontend |= {"frame_length": 25, "frame_shift": 10, "lfr_m": STACKED_FRAMES, "lfr_n": FRAMES_PER_CODE}
    content = {"encoder": "SANMEncoderChunkOpt", "encoder_conf": encoder_conf, "frontend_conf": frontend}
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    state = {_PREFIX + name: value.cpu() for name, value in paraformer.encoder.state_dict().items()}
    torch.save(state, folder / "model.pt")
    (folder / "am.mvn").write_text(_normalization_text(paraformer.normalization))


def load_normalization(path: Path) -> Normalization:
    """Read `am.mvn`: a network in Kaldi's text format with an `<AddShift>` and a `<Rescale>` layer.

    Raises:
        ValueError: missing, or without these layers; names the file.
    """
    text = _text(path)
    layers = {}
    for name in ("AddShift", "Rescale"):
        found = re.search(rf"<{name}>[^\[]*\[([^\]]*)\]", text)
        if not found:
            raise ValueError(f"{path}: no <{name}> layer with its values; it is not Paraformer's am.mvn")
        try:
            layers[name] = torch.tensor([float(value) for value in found[1].split()])
        except ValueError as error:
            raise ValueError(f"{path}: a value of <{name}> is not a number ({error})") from None
    if layers["AddShift"].shape != layers["Rescale"].shape:
        raise ValueError(f"{path}: {len(layers['AddShift'])} shifts and {len(layers['Rescale'])} scales")
    return Normalization(layers["AddShift"], layers["Rescale"])


def _normalization_text(normalization: Normalization) -> str:
    size = len(normalization.shift)
    rows = [f"<Nnet>\n<Splice> {size} {size}\n[ 0 ]"]
    for name, values in (("AddShift", normalization.shift), ("Rescale", normalization.scale)):
        numbers = " ".join(f"{value:.9g}" for value in values.tolist())
        rows.append(f"<{name}> {size} {size}\n<LearnRateCoef> 0 [ {numbers} ]")
    return "\n".join([*rows, "</Nnet>\n"])


_SIZES = [field.name for field in fields(SanmConfig) if field.name in {
    "input_size", "output_size", "attention_heads", "linear_units", "num_blocks", "kernel_size"
}]  # fmt: skip


def _config(path: Path) -> SanmConfig:
    try:
        content = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not readable as YAML ({error})") from None
    sizes: Any = content.get("encoder_conf") if isinstance(content, dict) else None
    if not isinstance(sizes, dict):
        raise ValueError(f"{path}: no encoder_conf; it is not Paraformer's config.yaml")
    for name, value in _FIXED.items():
        if sizes.get(name, value) != value:
            raise ValueError(f"{path}: encoder_conf.{name} is {sizes[name]!r}; only {value!r} is supported")
    frontend = content.get("frontend_conf", {})
    stacking = (frontend.get("lfr_m", STACKED_FRAMES), frontend.get("lfr_n", FRAMES_PER_CODE))
    if stacking != (STACKED_FRAMES, FRAMES_PER_CODE):
        raise ValueError(f"{path}: frames are stacked {stacking[0]}/{stacking[1]}; audio tokens need 7/6, 16.67 Hz")
    known = {name: sizes[name] for name in _SIZES if name in sizes}
    return SanmConfig(input_size=frontend.get("n_mels", 80) * STACKED_FRAMES, **known)


def _load_weights(encoder: SanmEncoder, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    except Exception as error:
        raise ValueError(f"{path}: not readable as weights ({error})") from None
    weights = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: its encoder does not fit config.yaml beside it: {error}") from None


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return path.read_text(encoding="utf-8", errors="replace")
