"""A planned conversion: what is to be written, from where, with every check made that needs no tensor."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import megatron_aqaa
from megatron_aqaa.checkpoint.conversion.pieces import Pieces
from megatron_aqaa.checkpoint.output_files import OutputFile, OutputTensor
from megatron_aqaa.whole_file import partial_path

SHARD_BYTES = 2 << 30
Weights = tuple[list[OutputFile], dict[str, OutputTensor]]
"""Files, and the tensors that are in them."""


@dataclass(frozen=True)
class Conversion:
    """What is to be written, from where.

    Attributes:
        settings: what the user asked for; goes into the record.
        source: directory whose record, if it has one, holds the checksums of what is read.
        source_files: everything that is read; must not change meanwhile.
        output: directory; must not be there.
        files: of weights.
        tensors: that are in them.
        pieces: what each of these tensors is made of.
        finish: writes all other files into the directory it is given, those that make it a checkpoint last.
        notes: what the user should know.
    """

    settings: dict[str, Any]
    source: Path
    source_files: tuple[Path, ...]
    output: Path
    files: list[OutputFile]
    tensors: dict[str, OutputTensor]
    pieces: dict[str, Pieces]
    finish: Callable[[Path], None]
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Of all files of weights."""
        return sum(file.size for file in self.files)

    @property
    def num_parameters(self) -> int:
        """Elements of all written tensors, padded rows included."""
        return sum(torch.Size(tensor.shape).numel() for tensor in self.tensors.values())

    @property
    def work(self) -> Path:
        """Where it is written before it is whole."""
        return partial_path(self.output)

    def digest(self) -> str:
        """Of settings, source and files: equal for a run that may go on with what another has left."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.source_files]
        files = [(file.name, file.size, len(file.regions)) for file in self.files]
        values = [megatron_aqaa.__version__, self.settings, stats, files]
        return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def plain_values(options: Any) -> dict[str, Any]:
    """Fields of a dataclass of options as JSON holds them, for `settings`."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(options).items()}


def check_output(output: Path) -> None:
    """Raise ValueError if something is there already."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: is there already; name another output, or remove it")
