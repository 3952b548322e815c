"""Recordings of every format, rate and number of channels that the audio loaders promise to read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import soundfile

FORMATS = {  # suffix → soundfile's format and subtype
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def voice(seed: int, duration_s: float, rate_hz: int, channels: int = 1) -> np.ndarray:
    """[N, C]: a gliding harmonic tone with a noise floor, nothing above 3 kHz, another level in every channel."""
    random = np.random.default_rng(seed)
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    phase = 2 * np.pi * (random.uniform(100, 250) * time_s + random.uniform(-20, 20) * time_s**2)
    tone = sum(np.sin(k * phase) / k for k in range(1, 9))
    levels = random.uniform(0.03, 0.1, channels)
    return tone[:, None] * levels + 1e-3 * random.standard_normal((len(time_s), channels))


def encoded(samples: np.ndarray, rate_hz: int, suffix: str) -> bytes:
    """The file with these samples [N, C]."""
    content = io.BytesIO()
    name, subtype = FORMATS[suffix]
    soundfile.write(content, samples, rate_hz, format=name, subtype=subtype)
    return content.getvalue()


def write_mixed(directory: Path, count: int, rate_hz: int | None = None) -> list[Path]:
    """Recordings of 0.4 to 2 s in all formats, 1 to 8 channels, 8 to 48 kHz (or all at one rate)."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        suffix = list(FORMATS)[number % len(FORMATS)]
        rate = rate_hz or (8000, 16000, 24000, 48000)[number % 4]
        most = 2 if suffix == "mp3" else 8
        samples = voice(number, 0.4 + 1.6 * (number * 7 % count) / count, rate, 1 + number % most)
        paths.append(directory / f"{number:03d}.{suffix}")
        paths[-1].write_bytes(encoded(samples, rate, suffix))
    return paths


def write_manifest(path: Path, recordings: Iterable[Path], **more: object) -> Path:
    """A manifest that tells no durations, so that headers are read."""
    path.write_text("".join(json.dumps({"audio": str(audio), **more}) + "\n" for audio in recordings))
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar with these files."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
