"""What is kept of skipped steps: which documents they read, and what the next session must know of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from megatron_aqaa.training.monitoring.guards import Past
from megatron_aqaa.whole_file import write_json


class Sources(Protocol):
    """Whoever knows what sequences are made of."""

    def source(self, sequence: int) -> dict[str, Any]:
        """Where training sequence `sequence` of the run comes from, as plain values."""


def write_skipped(run: Path, step: int, facts: dict[str, Any], ranks: list[list[int]], sources: Sources) -> Path:
    """Write `<run>/skipped/step_<step>.json`; by one process.

    Args:
        run: run directory.
        step: that was skipped.
        facts: reason and numbers.
        ranks: sequences that each data-parallel rank read, in its order.
        sources: tells what they are made of.
    """
    path = run / "skipped" / f"step_{step:08d}.json"
    batch = [
        {"data_parallel_rank": rank, "sequences": [{"sequence": n, **sources.source(n)} for n in sequences]}
        for rank, sequences in enumerate(ranks)
    ]
    write_json(path, {"step": step, **without_nan(facts), "batch": batch})
    return path


def sequences_of_ranks(first: int, global_batch_size: int, micro_batch_size: int, num_ranks: int) -> list[list[int]]:
    """Sequences that each data-parallel rank reads of the global batch that begins with `first`.

    The order of `megatron_aqaa.data.loader.batches`: micro-batches go round the ranks.
    """
    chunk = micro_batch_size * num_ranks
    return [
        [
            start + i
            for start in range(first + rank * micro_batch_size, first + global_batch_size, chunk)
            for i in range(micro_batch_size)
        ]
        for rank in range(num_ranks)
    ]


def past_of(log: Path, step: int, window: int) -> Past:
    """What the guards knew after `step`, from the run's log; nothing where there is none.

    Args:
        log: `log.jsonl`. After a resume it repeats steps: the later line counts.
        step: the one to continue after; lines of later ones are of a session that was cut off.
        window: losses to give.
    """
    losses: list[float] = []
    skipped = in_a_row = 0
    for number, record in enumerate(_newest_first(log, step)):
        if number == 0:
            skipped = record.get("skipped_steps", 0)
        if "skipped" not in record:
            losses.append(record["loss"])
        elif not losses:
            in_a_row += 1
        if len(losses) == window:
            break
    return Past(tuple(reversed(losses)), skipped, in_a_row)


def without_nan(record: dict[str, Any]) -> dict[str, Any]:
    """`record` with None for floats that JSON cannot express."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def _newest_first(log: Path, step: int) -> Iterator[dict[str, Any]]:
    """Lines of training steps up to `step`, each step once."""
    before = step + 1
    for line in reversed(log.read_text().splitlines() if log.exists() else []):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # a killed run left it half-written
            continue
        if "loss" in record and record["step"] < before:
            before = record["step"]
            yield record
