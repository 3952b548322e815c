"""Recordings as DALI takes them: the bytes of a file, checked as `load_waveform` checks."""

from __future__ import annotations

import io
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile

from megatron_aqaa.audio.io import AudioError, check_wav_is_whole
from megatron_aqaa.audio.tar_member import TarMember
from megatron_aqaa.data.audio_loader import AudioLoaderConfig
from megatron_aqaa.data.audio_loading.records import AudioRecord
from megatron_aqaa.data.torch_loader import check_length, read_waveform

_DECODED_BY_DALI = ("WAV", "WAVEX", "FLAC", "OGG")


class Encoded(NamedTuple):
    """A recording for DALI.

    Attributes:
        content: [bytes] uint8, a file.
        num_samples: At the rate of the settings, as its header says.
    """

    content: npt.NDArray[np.uint8]
    num_samples: int


def read_encoded(record: AudioRecord, config: AudioLoaderConfig, for_dali: bool = True) -> Encoded:
    """The file as it is, if DALI decodes it to what soundfile and soxr would make of it; else what they made, as a wav.

    The latter are mp3 files, which DALI cannot decode; those of another rate, unless DALI is to resample; those with
    floating-point samples, whose NaN DALI would let pass; and all that are damaged, which raises here.

    Args:
        record: The recording.
        config: The settings.
        for_dali: False if DALI is known to fail at it, such as at an ogg file with a damaged page, which soundfile
            passes over.

    Raises:
        AudioError: As `read_waveform`.
    """
    head = _head(record.audio)
    if head is None:
        return _wav(record, config, config.sample_rate_hz)
    num_samples = -(-head.frames * config.sample_rate_hz // head.samplerate)
    known = head.format in _DECODED_BY_DALI and head.subtype not in ("FLOAT", "DOUBLE")
    if for_dali and known and (head.samplerate == config.sample_rate_hz or config.resampler == "dali"):
        check_length(record, config, num_samples)
        content = _content(record.audio)
        if content is not None:
            return Encoded(content, num_samples)
    return _wav(record, config, head.samplerate if config.resampler == "dali" else config.sample_rate_hz)


def _head(audio: Path | TarMember) -> soundfile.SoundFile | None:
    """What the header says, of a file that has one."""
    try:
        if isinstance(audio, TarMember):
            with audio.open() as stream, soundfile.SoundFile(stream) as file:
                return file
        if not audio.is_file():  # opening a pipe would wait for ever
            return None
        with soundfile.SoundFile(os.fsencode(audio)) as file:
            return file
    except (soundfile.LibsndfileError, OSError):
        return None


def _content(audio: Path | TarMember) -> npt.NDArray[np.uint8] | None:
    """The whole file, unless it was cut off, which DALI would not notice."""
    try:
        with audio.open() if isinstance(audio, TarMember) else audio.open("rb") as file:
            content = file.read() or b""
        check_wav_is_whole(Path(str(audio)), io.BytesIO(content), len(content))
    except (AudioError, OSError):
        return None
    return np.frombuffer(content, np.uint8)


def _wav(record: AudioRecord, config: AudioLoaderConfig, sample_rate_hz: int) -> Encoded:
    """What soundfile and soxr make of it, with a head for DALI."""
    features = config.features if sample_rate_hz == config.sample_rate_hz else replace(config.features, kind="waveform")
    waveform = read_waveform(record, replace(config, sample_rate_hz=sample_rate_hz, features=features)).numpy()
    size = waveform.nbytes
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 3, 1, sample_rate_hz, 4 * sample_rate_hz, 4, 32,
        b"data", size,
    )  # fmt: skip
    content = np.concatenate((np.frombuffer(head, np.uint8), waveform.view(np.uint8)))
    return Encoded(content, -(-len(waveform) * config.sample_rate_hz // sample_rate_hz))
