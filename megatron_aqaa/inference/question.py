"""A recording as a question: any format and rate, but neither endless nor silent, and resampled as in training."""

from __future__ import annotations

import warnings
from pathlib import Path

import soundfile
from torch import Tensor

from megatron_aqaa.audio.io import RESAMPLER, AudioError, load_waveform
from megatron_aqaa.inference.training_data import records_of_training

SAMPLE_RATE_HZ = 16_000
MAX_QUESTION_S = 30.0
"""The tokenizers cut longer recordings into independent pieces, and nothing was trained on such lengths."""
MIN_QUESTION_S = 0.12
SILENCE_PEAK = 0.002
"""Full scale 1. Below this (−54 dB) there is no speech that the peak normalisation could bring up."""


def load_question(path: str | Path) -> Tensor:
    """Read a question.

    Returns:
        [N] float32 at 16 kHz.

    Raises:
        AudioError: not a readable recording, longer than `MAX_QUESTION_S`, too short for a word, or silent.
    """
    path = Path(path)
    duration_s = _header_duration_s(path)  # first: ten minutes need not be decoded to be refused
    if duration_s > MAX_QUESTION_S:
        raise AudioError(
            f"{path}: lasts {duration_s:.1f} s; a question may last {MAX_QUESTION_S:.0f} s. "
            f"Cut it: ffmpeg -t {MAX_QUESTION_S:.0f} -i {path.name} {path.stem}-cut.wav"
        )
    waveform = load_waveform(path, SAMPLE_RATE_HZ)
    if len(waveform) < MIN_QUESTION_S * SAMPLE_RATE_HZ:
        raise AudioError(f"{path}: lasts {1000 * len(waveform) / SAMPLE_RATE_HZ:.0f} ms; that is too short for a word")
    peak = float(waveform.abs().max())
    if peak < SILENCE_PEAK:
        raise AudioError(
            f"{path}: holds silence only (peak {peak:.4f} of full scale, speech needs {SILENCE_PEAK}); "
            "check the microphone or raise its level"
        )
    return waveform


def check_training_resampler(config_path: Path, used: str = RESAMPLER) -> None:
    """Warn if the training data of a run came through another resampler than questions do here.

    Args:
        config_path: `config.yaml` of the run; data sets that note no resampler are passed over.
        used: what `load_question` reads with.
    """
    noted = {record["resampler"] for record in records_of_training(config_path) if "resampler" in record}
    for other in sorted(noted - {used}):
        warnings.warn(
            f"{config_path}: the run was trained on recordings that passed through the resampler {other!r}; questions "
            f"here pass through {used!r}, and their tokens may differ near the band edge. Install the former "
            f"(package soxr), or give questions at 16 kHz, which no resampler touches",
            stacklevel=2,
        )


def _header_duration_s(path: Path) -> float:
    """Length by the file's header; 0 where it cannot be read, for `load_waveform` to explain."""
    try:
        return float(soundfile.info(path).duration) if path.is_file() else 0.0
    except (soundfile.LibsndfileError, OSError):
        return 0.0
