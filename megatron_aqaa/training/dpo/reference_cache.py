"""Log-probabilities of a reference model on disk, and what they are valid for.

`<run>/reference/<name>.safetensors` holds one table `logps` [pairs, 2] float64 (chosen, rejected; NaN where not
computed) and, in its header, the key: what the numbers depend on. Any part that differs makes the table stale, and it
is refused by the name of that part.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_aqaa.checkpoint.store import require_checkpoint
from megatron_aqaa.data.indexed import mask_prefix
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from megatron_aqaa.vocabulary import Vocabulary

_NOT_OF_THE_FUNCTION = (
    "recompute",
    "recompute_logits",
    "deterministic_embedding_gradient",
    "init_method_std",
    "max_sequence_length",
)
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


def identity_key(config: DPOTrainConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """Which model the reference is, as plain JSON values."""
    model = {k: v for k, v in dataclasses.asdict(config.model).items() if k not in _NOT_OF_THE_FUNCTION}
    return {
        "reference_checkpoint": checkpoint_digest(require_checkpoint(config.reference_checkpoint)),
        "model": model,
        "vocabulary": dataclasses.asdict(vocabulary),
    }


def table_key(config: DPOTrainConfig, vocabulary: Vocabulary, prefixes: Sequence[Path]) -> dict[str, Any]:
    """What its log-probabilities of the pairs under `prefixes` depend on, as plain JSON values."""
    return {
        **identity_key(config, vocabulary),
        "data": [data_digest(prefix) for prefix in prefixes],
        "loss_mask": config.dpo.loss_mask,
        "sequence_length": config.data.sequence_length,
    }


def data_digest(prefix: Path) -> str:
    """sha256 of the token ids, the mask and their indices."""
    digest = hashlib.sha256()
    for path in (prefix, mask_prefix(prefix)):
        for suffix in (".idx", ".bin"):
            with Path(f"{path}{suffix}").open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def checkpoint_digest(directory: Path) -> str:
    """Tells one checkpoint from another, wherever it lies: sha256 of names, sizes and samples of its files.

    Of each file, 16 blocks of 64 KiB spread evenly (all of a small one): training moves every weight, so another
    step shows in any block, and a checkpoint of hundreds of GB takes a moment.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(directory)} {size}\n".encode())
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def read_table(path: Path, key: dict[str, Any], num_pairs: int) -> Tensor:
    """The table under `path`, [pairs, 2] float64, complete or not; all NaN if there is none.

    Raises:
        ValueError: it was made for something else, or the file is damaged; names the part that differs.
    """
    if not path.exists():
        return torch.full((num_pairs, 2), torch.nan, dtype=torch.float64)
    try:
        with safe_open(path, "pt") as file:
            found, table = json.loads(file.metadata()["key"]), file.get_tensor("logps")
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete it to compute it anew") from None
    check_key(path, found, key)
    return table


def write_table(path: Path, key: dict[str, Any], table: Tensor) -> None:
    """Write whole or not at all; by one process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"logps": table.cpu().contiguous()}, partial, metadata={"key": json.dumps(key)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def check_key(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises ValueError, naming the parts, if `found` (in the file) is not `wanted` (of this run)."""
    there, here = _flat(found), _flat(json.loads(json.dumps(wanted)))  # tuples become lists, as in the file
    different = [
        f"{name} (there {_brief(there.get(name))}, here {_brief(here.get(name))})"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if different:
        raise ValueError(
            f"{path}: made for another reference: {'; '.join(different)}. Set back what was changed, delete the file "
            "to make it anew, or give the run a directory of its own"
        )


def _flat(key: dict[str, Any]) -> dict[str, Any]:
    """Sections unfolded, `model.num_layers`."""
    sections = {f"{name}.{k}": v for name, value in key.items() if isinstance(value, dict) for k, v in value.items()}
    return {**{name: value for name, value in key.items() if not isinstance(value, dict)}, **sections}


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
