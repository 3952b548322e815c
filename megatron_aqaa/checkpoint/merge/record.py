"""The record of a merge: inputs and their hashes, weights, versions."""

from __future__ import annotations

import dataclasses
import hashlib
import platform as host
from datetime import UTC, datetime
from typing import Any

import torch

import megatron_aqaa
from megatron_aqaa.checkpoint.merge.plan import MergePlan
from megatron_aqaa.checkpoint.merge.state import Digests


def merge_record(plan: MergePlan, done: dict[str, Digests]) -> dict[str, Any]:
    """Of a merge that is done; `done` as in the note (`state`)."""
    regions = {name: digests for file in done.values() for name, digests in file.items()}
    return {
        "config": dataclasses.asdict(plan.config),
        "seed": plan.seed,
        "inputs": [
            {
                "path": model.path,
                "directory": str(model.directory.resolve()),
                "sha256": _content_digest(index, regions),
                "files": {file.name: file.stat().st_size for file in model.files},
                "left_out": list(model.left_out),
            }
            for index, model in enumerate(plan.models)
        ],
        "num_tensors": len(plan.tensors),
        "num_bytes": plan.total_bytes,
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in plan.tensors.values()}),
        "versions": {
            "megatron_aqaa": megatron_aqaa.__version__,
            "torch": torch.__version__,
            "python": host.python_version(),
        },
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _content_digest(index: int, regions: Digests) -> str:
    """sha256 of the lines `<tensor>[<offsets>] <sha256 of the elements>`, sorted, of one model."""
    lines = sorted(f"{name} {digests[index]}\n" for name, digests in regions.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
