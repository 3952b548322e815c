"""What a tokenized corpus is made of: hours, tokens, use of the codebooks, and what the codes say about phones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.ops.index import Codes, deinterleave_codes
from megatron_aqaa.tokenizer import linguistic, semantic
from megatron_aqaa.tokenizer.codebook import codebook_use, majority_phones, phone_accuracy
from megatron_aqaa.tokenizer.feature_extraction import SILENCE, frame_labels, unstressed
from megatron_aqaa.tokenizer.features import FRAMES_PER_GROUP
from megatron_aqaa.vocabulary import GROUP_DURATION_S, GROUP_SIZE, Vocabulary

TRAINED = "train"
FRAMES_PER_CODE = {"linguistic": linguistic.FRAMES_PER_CODE, "semantic": semantic.FRAMES_PER_CODE}


def token_report(prefix: Path, manifest: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    """Counts of a tokenized manifest.

    Args:
        prefix: of the tokens, sequence i for line i of the manifest.
        manifest: lines may name `split` and `phones` (start in seconds, name); with both, each codebook gets
            `phone_accuracy` by split: how often the phone that is commonest for a code in the training split is right.
        vocabulary: id layout.

    Returns:
        `hours`, `num_tokens`, and for `linguistic` and `semantic` size, used, perplexity, counts, phone_accuracy.
    """
    records = [json.loads(line) for line in manifest.read_text(encoding="utf-8", errors="surrogateescape").splitlines()]
    codes = _codes(prefix, vocabulary)
    num_groups = sum(len(c.semantic) for c in codes) // 3
    hours = num_groups * GROUP_DURATION_S / 3600
    report: dict[str, Any] = {"hours": hours, "num_tokens": num_groups * GROUP_SIZE}
    phones = _phones(records, codes)
    splits = np.array([record.get("split", TRAINED) for record in records])
    sizes = {"linguistic": vocabulary.linguistic_size, "semantic": vocabulary.semantic_size}
    for name, size in sizes.items():
        streams = [getattr(c, name) for c in codes]
        report[name] = asdict(codebook_use(np.concatenate(streams), size))
        if phones and TRAINED in splits:
            step = FRAMES_PER_CODE[name]
            middles = [p[step // 2 :: step] for p in phones]
            report[name]["phone_accuracy"] = _accuracy_by_split(streams, middles, splits, size)
    return report


def _codes(prefix: Path, vocabulary: Vocabulary) -> list[Codes]:
    """Codes of every line; none for a rejected one."""
    documents = Documents(prefix)
    starts = {"linguistic_start": vocabulary.linguistic_start, "semantic_start": vocabulary.semantic_start}
    audio = (documents[i].token_ids for i in range(len(documents)))
    return [deinterleave_codes(ids[vocabulary.is_audio(ids)], **starts) for ids in audio]


def _phones(records: list[dict[str, Any]], codes: list[Codes]) -> list[NDArray[np.uint8]]:
    """Phone index of each 10 ms of every line; empty if any line names none."""
    if not all("phones" in record for record in records):
        return []
    names = sorted({unstressed(name) for record in records for _, name in record["phones"]} - {SILENCE})
    index = {name: i for i, name in enumerate([SILENCE, *names])}
    frames = [len(c.semantic) // 3 * FRAMES_PER_GROUP for c in codes]
    return [frame_labels(r["phones"], index, f) for r, f in zip(records, frames, strict=True)]


def _accuracy_by_split(
    streams: list[NDArray[np.int64]], phones: list[NDArray[np.uint8]], splits: NDArray[np.str_], size: int
) -> dict[str, float]:
    """Accuracy of the training split's majority phones in every split."""

    def joined(parts: list[Any], split: str) -> NDArray[np.int64]:
        return np.concatenate([part for part, of in zip(parts, splits, strict=True) if of == split]).astype(np.int64)

    majority = majority_phones(joined(streams, TRAINED), joined(phones, TRAINED), size)
    return {s: phone_accuracy(joined(streams, s), joined(phones, s), majority) for s in np.unique(splits).tolist()}
