"""Host-side index building on numpy arrays: group order, text/audio order, packing (C++: `csrc/index/`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_aqaa.ops.library import load_extension

_index = load_extension("_index")

Ids = npt.NDArray[np.int64]


class Codes(NamedTuple):
    """The two code streams of one utterance."""

    linguistic: Ids  # [2n], 16.67 Hz
    semantic: Ids  # [3n], 25 Hz


class PackingPlan(NamedTuple):
    """Which items share a sequence: bin b holds `order[offsets[b]:offsets[b + 1]]`."""

    offsets: Ids  # [bins + 1]
    order: Ids  # [items], ascending within a bin


def interleave_codes(
    linguistic: npt.ArrayLike,
    semantic: npt.ArrayLike,
    *,
    linguistic_start: int = 0,
    semantic_start: int = 0,
    audio_stop: int | None = None,
) -> Ids:
    """Merges the two code streams into groups `[L L S S S]` (Step-Audio, arXiv 2502.11946 §3.1).

    Args:
        linguistic: codes [NL] from 0.
        semantic: codes [NS] from 0.
        linguistic_start: added to every linguistic code, so that the result is token ids.
        semantic_start: added to every semantic code.
        audio_stop: one past the last semantic id; None: no upper limit. `Vocabulary.audio_range` has all three.

    Returns:
        ids [5n], n = min(NL // 2, NS // 3): the tails that fill no group are dropped.

    Raises:
        ValueError: a code is negative or past its codebook (its place and value are named), or an input is not a
            one-dimensional array of integers.
    """
    return _index.interleave_codes(
        _as_ids("linguistic", linguistic),
        _as_ids("semantic", semantic),
        linguistic_start,
        semantic_start,
        _limit(audio_stop, semantic_start),
    )


def deinterleave_codes(
    ids: npt.ArrayLike, *, linguistic_start: int = 0, semantic_start: int = 0, audio_stop: int | None = None
) -> Codes:
    """Splits whole groups `[L L S S S]` into the two code streams, the inverse of `interleave_codes`.

    Args:
        ids: token ids [5n] of audio only.
        linguistic_start: id of linguistic code 0.
        semantic_start: id of semantic code 0. If it lies above `linguistic_start`, every id is checked against the
            grammar; plain codes (both 0) cannot be.
        audio_stop: as in `interleave_codes`.

    Raises:
        ValueError: the length is not a multiple of 5, or an id breaks the grammar (its position and value are named).
    """
    limit = _limit(audio_stop, semantic_start)
    return Codes(*_index.deinterleave_codes(_as_ids("ids", ids), linguistic_start, semantic_start, limit))


def interleave_text_audio(
    text_ids: npt.ArrayLike,
    audio_ids: npt.ArrayLike,
    text_chunk: int = 10,
    audio_chunk: int = 15,
    *,
    audio_start: int | None = None,
    audio_end: int | None = None,
) -> Ids:
    """Token ids of one spoken answer: `text_chunk` of text, `audio_chunk` of audio, text first (FACTS: 10:15).

    What is published leaves open which side runs out first; here, with fewer than `text_chunk` text ids left these are
    followed by all the audio that is left, and once the audio is spent all the text that is left follows it.

    Args:
        text_ids: [NT].
        audio_ids: [NA], groups `[L L S S S]`.
        text_chunk: text ids in a row, at least 1.
        audio_chunk: audio ids in a row, at least 1; a multiple of 5 keeps groups whole.
        audio_start: marker put before the first audio id; None: no marker.
        audio_end: marker put after the last audio id; None: no marker.

    Returns:
        ids [NT + NA + markers]; without audio there are no markers.
    """
    return _index.interleave_text_audio(
        _as_ids("text_ids", text_ids),
        _as_ids("audio_ids", audio_ids),
        text_chunk,
        audio_chunk,
        _marker("audio_start", audio_start),
        _marker("audio_end", audio_end),
    )


def packing_plan(lengths: npt.ArrayLike, capacity: int) -> PackingPlan:
    """Packs documents into sequences of one capacity by best-fit decreasing; the same input gives the same plan.

    Longest first (equal lengths by index), each where the least room remains (ties: the bin filled last).

    Args:
        lengths: tokens of each document [N].
        capacity: tokens of a sequence.

    Raises:
        ValueError: a length lies outside [1, capacity]; the item and its length are named.
    """
    return PackingPlan(*_index.packing_plan(_as_ids("lengths", lengths), capacity))


def _as_ids(name: str, values: npt.ArrayLike) -> Ids:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold integers, not {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int64) if array.ndim else array.astype(np.int64)


def _limit(audio_stop: int | None, semantic_start: int) -> int:
    if audio_stop is not None and audio_stop <= semantic_start:
        raise ValueError(f"audio_stop = {audio_stop} leaves no semantic ids behind semantic_start = {semantic_start}")
    return -1 if audio_stop is None else audio_stop


def _marker(name: str, value: int | None) -> int:
    if value is not None and value < 0:
        raise ValueError(f"{name} must be a token id or None, not {value}")
    return -1 if value is None else value
