"""What a tokenized corpus is made of: hours, tokens, use of the codebooks, and what the codes say about phones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.ops.index import deinterleave_codes
from megatron_aqaa.tokenizer import linguistic, semantic
from megatron_aqaa.tokenizer.codebook import use_of_counts
from megatron_aqaa.tokenizer.feature_extraction import SILENCE, frame_labels
from megatron_aqaa.tokenizer.features import FRAMES_PER_GROUP
from megatron_aqaa.tokenizer.phones import unstressed
from megatron_aqaa.vocabulary import GROUP_DURATION_S, GROUP_SIZE, Vocabulary

TRAINED = "train"
_LENGTHS_S = (
    ("< 1 s", 1.0),
    ("1–2 s", 2.0),
    ("2–5 s", 5.0),
    ("5–10 s", 10.0),
    ("10–20 s", 20.0),
    ("20–30 s", 30.0),
    ("30–60 s", 60.0),
    ("1–5 min", 300.0),
    ("5–30 min", 1800.0),
)
_LONGER = "≥ 30 min"
FRAMES_PER_CODE = {"linguistic": linguistic.FRAMES_PER_CODE, "semantic": semantic.FRAMES_PER_CODE}


def token_report(prefix: Path, manifest: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    """Counts of a tokenized manifest, in memory that does not grow with it.

    Args:
        prefix: of the tokens, sequence i for line i of the manifest.
        manifest: lines may name `split` and `phones` (start in seconds, name); with both, each codebook gets
            `phone_accuracy` by split: how often the phone that is commonest for a code in the training split is right.
        vocabulary: id layout.

    Returns:
        `hours`, `num_tokens`, `recordings`; `splits`: hours, recordings and those with text by split; `lengths`:
        recordings by length; and for `linguistic` and `semantic` size, used, perplexity, counts, phone_accuracy.
    """
    phones = _phone_index(manifest)
    sizes = {"linguistic": vocabulary.linguistic_size, "semantic": vocabulary.semantic_size}
    counts = {name: _Counts(size, FRAMES_PER_CODE[name], phones) for name, size in sizes.items()}
    splits, documents = _Splits(), Documents(prefix)
    for number, record in enumerate(_records(manifest)):
        token_ids = documents[number].token_ids
        codes = deinterleave_codes(token_ids[vocabulary.is_audio(token_ids)], **vocabulary.audio_range)
        num_frames = len(codes.semantic) // 3 * FRAMES_PER_GROUP
        splits.add(record, len(codes.semantic) // 3)
        spoken = frame_labels(record["phones"], phones, num_frames) if phones else None
        for name, count in counts.items():
            count.add(getattr(codes, name), spoken, record.get("split") or TRAINED)
    return splits.result() | {name: count.result() for name, count in counts.items()}


class _Splits:
    """Sums by split, and lengths."""

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, int]] = {}
        self.lengths = dict.fromkeys((*(name for name, _ in _LENGTHS_S), _LONGER), 0)

    def add(self, record: dict[str, Any], num_groups: int) -> None:
        """A recording; one without groups was rejected."""
        sums = self.sums.setdefault(record.get("split") or TRAINED, {"recordings": 0, "with_text": 0, "groups": 0})
        sums["recordings"] += num_groups > 0
        sums["with_text"] += num_groups > 0 and bool(record.get("text"))
        sums["groups"] += num_groups
        if num_groups:
            seconds = num_groups * GROUP_DURATION_S
            self.lengths[next((name for name, limit_s in _LENGTHS_S if seconds < limit_s), _LONGER)] += 1

    def result(self) -> dict[str, Any]:
        """Part of the report."""
        num_groups = sum(sums["groups"] for sums in self.sums.values())
        splits = {
            split: {
                "hours": sums["groups"] * GROUP_DURATION_S / 3600,
                "recordings": sums["recordings"],
                "with_text": sums["with_text"],
            }
            for split, sums in sorted(self.sums.items())
        }
        return {
            "hours": num_groups * GROUP_DURATION_S / 3600,
            "num_tokens": num_groups * GROUP_SIZE,
            "recordings": sum(split["recordings"] for split in splits.values()),
            "splits": splits,
            "lengths": self.lengths,
        }


class _Counts:
    """How often each code of a codebook occurs, and, by split, with which phone at its middle."""

    def __init__(self, size: int, frames_per_code: int, phones: dict[str, int]) -> None:
        self.total = np.zeros(size, np.int64)
        self.frames_per_code, self.num_phones = frames_per_code, len(phones)
        self.by_split: dict[str, NDArray[np.int64]] = {}

    def add(self, codes: NDArray[np.int64], phones: NDArray[np.uint8] | None, split: str) -> None:
        """Codes [N] of a recording, and the phone of each of its frames of 10 ms."""
        self.total += np.bincount(codes, minlength=len(self.total))
        if phones is None:
            return
        table = self.by_split.setdefault(split, np.zeros((len(self.total), self.num_phones), np.int64))
        np.add.at(table, (codes, phones[self.frames_per_code // 2 :: self.frames_per_code]), 1)

    def result(self) -> dict[str, Any]:
        """Use, and `phone_accuracy` where phones are known."""
        result = asdict(use_of_counts(self.total))
        if TRAINED in self.by_split:
            trained = self.by_split[TRAINED]
            majority, known = trained.argmax(1), trained.any(1)
            every = np.arange(len(trained))
            accuracy = {
                split: float(table[every, majority][known].sum() / max(1, table.sum()))
                for split, table in sorted(self.by_split.items())
            }
            result["phone_accuracy"] = accuracy
        return result


def _records(manifest: Path) -> Iterator[dict[str, Any]]:
    with manifest.open(encoding="utf-8", errors="surrogateescape") as lines:
        yield from map(json.loads, lines)


def _phone_index(manifest: Path) -> dict[str, int]:
    """Index of every phone; empty if any line names none."""
    names: set[str] = set()
    for record in _records(manifest):
        if "phones" not in record:
            return {}
        names.update(unstressed(name) for _, name in record["phones"])
    return {name: number for number, name in enumerate([SILENCE, *sorted(names - {SILENCE})])}
