"""Two hundred audio files that cannot be used, each damaged in another way or place."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16000


def noise(seed: int, num_samples: int = 8000) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, num_samples)


def cut_wav(path: Path, seed: int) -> None:
    soundfile.write(os.fsencode(path), noise(seed), RATE_HZ, format="WAV")
    path.write_bytes(path.read_bytes()[: 50 + 311 * seed])


def cut_flac(path: Path, seed: int) -> None:
    soundfile.write(os.fsencode(path), noise(seed, 40_000), RATE_HZ, format="FLAC")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * (seed + 1) // 30])


def zero_bytes(path: Path, seed: int) -> None:
    path.touch()


def no_samples(path: Path, seed: int) -> None:
    soundfile.write(os.fsencode(path), np.zeros(0), 8000 + 1000 * seed, format="WAV")


def wrong_header(path: Path, seed: int) -> None:
    soundfile.write(os.fsencode(path), noise(seed), RATE_HZ, format="WAV")
    content = bytearray(path.read_bytes())
    content[(0, 1, 2, 3, 8, 9, 10, 11)[seed % 8]] ^= 0xFF  # those between only tell the length
    path.write_bytes(content)


def text(path: Path, seed: int) -> None:
    path.write_text("this is no recording\n" * (seed + 1))


def random_bytes(path: Path, seed: int) -> None:
    path.write_bytes(np.random.default_rng(seed).bytes(1000 + seed))


def not_a_number(path: Path, seed: int) -> None:
    samples = noise(seed)
    samples[37 * seed] = (np.nan, np.inf, -np.inf)[seed % 3]
    soundfile.write(os.fsencode(path), samples, RATE_HZ, subtype="FLOAT", format="WAV")


def ten_hours_of_silence(path: Path, seed: int) -> None:
    """A sparse file: its header tells how long it is."""
    size = 2 * RATE_HZ * 36_000
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    with path.open("wb") as file:
        file.write(head + struct.pack("<4sI", b"data", size))
        file.truncate(44 + size)


def too_short(path: Path, seed: int) -> None:
    soundfile.write(os.fsencode(path), noise(seed, 1 + 45 * seed), RATE_HZ, format="WAV")


def folder(path: Path, seed: int) -> None:
    path.mkdir()


def missing(path: Path, seed: int) -> None:
    pass


def loop(path: Path, seed: int) -> None:
    path.symlink_to(path)


def dangling(path: Path, seed: int) -> None:
    path.symlink_to(path.with_name("nothing"))


def pipe(path: Path, seed: int) -> None:
    os.mkfifo(path)


KINDS: tuple[Callable[[Path, int], None], ...] = (
    cut_wav, cut_flac, zero_bytes, no_samples, wrong_header, text, random_bytes, not_a_number, too_short, folder,
    missing, loop, dangling, pipe, ten_hours_of_silence,
)  # fmt: skip


def write_damaged(directory: Path, count: int = 200) -> Iterator[Path]:
    """Make the files; every tenth name is no UTF-8."""
    for number in range(count):
        kind, seed = KINDS[number % len(KINDS)], number // len(KINDS)
        odd = b"\xff\xe9" if number % 10 == 3 else b""
        name = os.fsdecode(f"{number:03d}_{kind.__name__}".encode() + odd + b".wav")
        kind(directory / name, seed)
        yield directory / name
