"""Reading audio of any kind as one mono waveform at one rate, and writing waveforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor


class AudioError(ValueError):
    """An audio file that cannot be used; the message names the file and what would help."""


def load_waveform(path: str | Path, sample_rate_hz: int = 16000) -> Tensor:
    """Reads a wav, flac, ogg or mp3 file of any rate and any number of channels.

    Channels are averaged. Every file passes through the same resampler (soxr, high quality): training and serving must
    not differ in theirs.

    Args:
        path: The file.
        sample_rate_hz: Rate of the result.

    Returns:
        [N] float32, full scale 1, N ≥ 1.

    Raises:
        AudioError: The file is missing, a folder, empty, unreadable, without samples, or holds NaN or infinity.
    """
    path = Path(path)
    _check_exists(path)
    try:
        samples, file_rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        remedy = f"convert it first: ffmpeg -i {path.name} {path.stem}.wav"
        raise AudioError(f"{path}: not readable as wav, flac, ogg or mp3 ({error}); {remedy}") from None
    if not len(samples):
        raise AudioError(f"{path}: holds no samples; record it again")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds NaN or infinite samples; the recording is damaged, export it again")
    mono = samples.mean(axis=1)
    if file_rate_hz != sample_rate_hz:
        mono = soxr.resample(mono, file_rate_hz, sample_rate_hz)
    if not len(mono):
        raise AudioError(f"{path}: {len(samples)} samples at {file_rate_hz} Hz leave nothing at {sample_rate_hz} Hz")
    return torch.from_numpy(np.ascontiguousarray(mono))


def save_waveform(waveform: Tensor, path: str | Path, sample_rate_hz: int = 16000) -> None:
    """Writes a mono waveform as 16-bit PCM.

    Args:
        waveform: [N], full scale 1; what lies beyond is clipped.
        path: Ends in .wav or .flac; missing folders are made.
        sample_rate_hz: Rate of the waveform.

    Raises:
        AudioError: Not one-dimensional, not finite, another file format, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".wav", ".flac"):
        raise AudioError(f"{path}: audio is written as .wav or .flac, found {path.suffix or 'no suffix'!r}")
    if waveform.ndim != 1:
        raise AudioError(f"{path}: expected a mono waveform [N], found shape {list(waveform.shape)}")
    if not torch.isfinite(waveform).all():
        raise AudioError(f"{path}: the waveform holds NaN or infinite samples; nothing was written")
    samples = waveform.detach().cpu().float().clamp(-1.0, 1.0).numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, sample_rate_hz, subtype="PCM_16")
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: cannot be written ({error})") from None


def normalize_peak(waveform: Tensor) -> Tensor:
    """Scales [..., N] so that the loudest sample of the whole tensor is 0.999.

    Step-Audio's preparation of every input (stepfun-ai/Step-Audio: `utils.py`). Below a peak of 0.01 the gain stays
    where it is at 0.01: near-silence is not blown up to noise.
    """
    if not waveform.numel():
        raise AudioError("an empty waveform has no peak")
    return waveform / waveform.abs().max().clamp(min=0.01) * 0.999


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise AudioError(f"{path}: no such file")
    if path.is_dir():
        raise AudioError(f"{path}: is a folder; name one audio file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: is empty (0 bytes); record or copy it again")
