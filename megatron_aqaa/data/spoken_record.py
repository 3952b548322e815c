"""The speech in a document, as sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_aqaa.audio.io import save_waveform
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.group_repair import OnFault
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder


def open_vocoder(run: Path, vocabulary: Vocabulary) -> TokenVocoder:
    """The vocoder of a run, or in a folder of its own.

    Raises:
        ValueError: there is none, or it speaks the ids of another vocabulary.
    """
    vocoder = TokenVocoder.load(run / "vocoder" if (run / "vocoder").is_dir() else run)
    ours, theirs = vocabulary, vocoder.vocabulary
    if (ours.linguistic_start, ours.semantic_start) != (theirs.linguistic_start, theirs.semantic_start):
        raise ValueError(
            f"{run}: a vocoder for audio ids from {theirs.linguistic_start}; those of the data begin at "
            f"{ours.linguistic_start}: name the vocoder of the data's own tokenizer"
        )
    return vocoder


def spoken_segments(token_ids: NDArray[np.int64], vocabulary: Vocabulary) -> list[NDArray[np.int64]]:
    """Audio tokens of each spoken segment, from one `<audio_start>` to the next; text between them is left out.

    Audio before the first marker, as in a data set of tokens alone, is a segment too.
    """
    parts = np.split(token_ids, np.flatnonzero(token_ids == vocabulary.audio_start))
    spoken = [part[vocabulary.is_audio(part)] for part in parts]
    return [segment for segment in spoken if len(segment)]


def save_speech(
    token_ids: NDArray[np.int64], stem: Path, vocoder: TokenVocoder, on_fault: OnFault
) -> Iterator[tuple[Path, float]]:
    """Speak every segment of a document into a file; yields the files and their seconds.

    Args:
        token_ids: of the document.
        stem: path of the file without `.wav`; with several segments `_1`, `_2`, … is added.
        vocoder: who speaks.
        on_fault: told of breaks in the order of groups, which are repaired.
    """
    segments = spoken_segments(token_ids, vocoder.vocabulary)
    for number, segment in enumerate(segments, start=1):
        path = stem.with_name(f"{stem.name}{f'_{number}' if len(segments) > 1 else ''}.wav")
        waveform = vocoder.synthesize(segment, on_fault=on_fault)
        save_waveform(waveform, path, vocoder.sample_rate_hz)
        yield path, len(waveform) / vocoder.sample_rate_hz
