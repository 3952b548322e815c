"""What a plan needs of a run's YAML; the rest of the file is the trainer's business."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_aqaa.config import load_config
from megatron_aqaa.planner.layout import Layout
from megatron_aqaa.planner.plan import Batch
from megatron_aqaa.planner.planned_model import PlannedModel
from megatron_aqaa.vocabulary import Vocabulary


@dataclass(frozen=True)
class RunSections:
    """Sections of a run. `model` and `parallel` are checked to the key; of the others single keys are read."""

    model: PlannedModel
    parallel: Layout = Layout()
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    vocabulary: Path | None = None
    run: Any = None
    optimizer: Any = None
    guards: Any = None
    watchdog: Any = None
    dpo: Any = None


@dataclass(frozen=True)
class PlannedRun:
    """A run, ready to be planned.

    Attributes:
        model: its model, with the vocabulary's true size.
        layout: its parallel layout.
        batch: its batch.
        notes: what had to be assumed.
    """

    model: PlannedModel
    layout: Layout
    batch: Batch
    notes: tuple[str, ...]


def read_run(path: str | Path, overrides: Sequence[str] = ()) -> PlannedRun:
    """Read a run's YAML, or a model's with overrides such as `data.sequence_length=8192`.

    Raises:
        ValueError: unknown, missing or wrong keys; the message names the file.
    """
    sections = load_config(RunSections, path, overrides)
    notes = []
    model = sections.model
    if sections.vocabulary is not None and sections.vocabulary.exists():
        model = dataclasses.replace(model, vocab_size=Vocabulary.load(sections.vocabulary).size)
    elif sections.vocabulary is not None:
        notes.append(f"{sections.vocabulary} is not there yet: planned with {model.vocab_size:,} rows of vocabulary")
    if sections.training.get("frozen"):
        notes.append("training.frozen is planned as if everything were trained: an upper bound")
    return PlannedRun(model, sections.parallel, _batch(sections, path), tuple(notes))


def _batch(sections: RunSections, path: str | Path) -> Batch:
    return Batch(
        _whole_number(path, "data", sections.data, "sequence_length"),
        _whole_number(path, "training", sections.training, "micro_batch_size", 1),
        _whole_number(path, "training", sections.training, "global_batch_size"),
    )


def _whole_number(path: str | Path, name: str, section: dict[str, Any], key: str, default: int | None = None) -> int:
    value = section.get(key, default)
    if value is None:
        raise ValueError(f"{path}: missing key {name}.{key}; give it in the file or as {name}.{key}=N")
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{path}: {name}.{key}: must be a whole number, found {value!r}")
    return value
