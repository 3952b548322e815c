"""Reading audio of any kind as one mono waveform at one rate, and writing waveforms."""

from __future__ import annotations

import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch
from torch import Tensor

from megatron_aqaa.audio.tar_member import TarMember

RESAMPLER = f"soxr {soxr.__version__.split('.')[0]} HQ"
"""What brings recordings to another rate; data sets note it, since no two resamplers agree near the band edge."""


class AudioError(ValueError):
    """An audio file that cannot be used; the message names the file and what would help."""


def load_waveform(path: str | Path | TarMember, sample_rate_hz: int = 16000) -> Tensor:
    """Reads a wav, flac, ogg, opus or mp3 file of any rate and any number of channels.

    Channels are averaged. Every file passes through the same resampler (soxr, high quality): training and serving must
    not differ in theirs.

    Args:
        path: The file.
        sample_rate_hz: Rate of the result.

    Returns:
        [N] float32, full scale 1, N ≥ 1.

    Raises:
        AudioError: The file is missing, a folder, a pipe, empty, unreadable, truncated, without samples, or holds NaN
            or infinity.
    """
    return torch.cat(list(read_blocks(path, sample_rate_hz)))


def read_blocks(path: str | Path | TarMember, sample_rate_hz: int = 16000, block_s: float = 30.0) -> Iterator[Tensor]:
    """Reads a file piece by piece, in memory that does not grow with it; joined, the pieces are `load_waveform`'s.

    Args:
        path: The file.
        sample_rate_hz: Rate of the result.
        block_s: What is read at a time; pieces differ a little in length where the rate changes.

    Yields:
        [N] float32, at least one, none empty.

    Raises:
        AudioError: As `load_waveform`; of what is wrong inside the file, when it is reached.
    """
    if isinstance(path, TarMember):
        with _opened(path) as file:
            yield from _blocks(Path(str(path)), file, sample_rate_hz, block_s)
        return
    path = Path(path)
    _check_file(path)
    yield from _blocks(path, os.fsencode(path), sample_rate_hz, block_s)  # bytes: names need not be UTF-8


def check_resampler(recorded: str, where: str | Path, used: str = RESAMPLER) -> None:
    """Refuse what was made from recordings that another resampler brought to their rate.

    Args:
        recorded: What the data set or checkpoint noted.
        where: The data set or checkpoint, for the message.
        used: The resampler of this program; `load_waveform`'s if not given.

    Raises:
        ValueError: They differ.
    """
    if recorded != used:
        raise ValueError(
            f"{where}: made with the resampler {recorded!r}, but here recordings pass through {used!r}, and the two "
            f"differ near the band edge; use the same one, or make it again"
        )


def _blocks(path: Path, source: bytes | BinaryIO, sample_rate_hz: int, block_s: float) -> Iterator[Tensor]:
    found = False
    try:
        with soundfile.SoundFile(source) as file:
            for block in _resampled(path, file, sample_rate_hz, max(1, round(block_s * file.samplerate))):
                found = found or len(block) > 0
                if len(block):
                    yield torch.from_numpy(block)
            rate_hz, frames = file.samplerate, file.tell()
    except (soundfile.LibsndfileError, OSError) as error:
        remedy = f"convert it first: ffmpeg -i {path.name} {path.stem}.wav"
        raise AudioError(f"{path}: not readable as wav, flac, ogg or mp3 ({error}); {remedy}") from None
    if not found:
        raise AudioError(f"{path}: {frames} samples at {rate_hz} Hz leave nothing at {sample_rate_hz} Hz")


def duration_s(path: str | Path | TarMember) -> float:
    """Seconds that a file's header promises.

    Raises:
        AudioError: The file is missing, a folder, a pipe, empty, or has no header that can be read.
    """
    try:
        if isinstance(path, TarMember):
            with _opened(path) as file:
                return float(soundfile.info(file).duration)
        path = Path(path)
        _check_file(path)
        return float(soundfile.info(os.fsencode(path)).duration)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: not readable as wav, flac, ogg or mp3 ({error})") from None


def _resampled(
    path: Path, file: soundfile.SoundFile, sample_rate_hz: int, block: int
) -> Iterator[npt.NDArray[np.float32]]:
    if file.samplerate == sample_rate_hz:
        yield from _mono(path, file, block)
        return
    if file.samplerate < sample_rate_hz:
        warnings.warn(
            f"recordings at {file.samplerate} Hz are brought to {sample_rate_hz} Hz; they hold nothing above "
            f"{file.samplerate // 2} Hz",
            stacklevel=2,
        )
    blocks = _mono(path, file, block)
    first, second = next(blocks), next(blocks, None)
    if second is None:  # the same samples in three quarters of the time
        yield soxr.resample(first, file.samplerate, sample_rate_hz)
        return
    stream = soxr.ResampleStream(file.samplerate, sample_rate_hz, 1, dtype="float32")
    for samples in chain((first, second), blocks):
        yield stream.resample_chunk(samples)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _mono(path: Path, file: soundfile.SoundFile, block: int) -> Iterator[npt.NDArray[np.float32]]:
    """Blocks [N] of the file as it is, checked."""
    count, exact = 0, file.format in ("WAV", "FLAC", "AIFF", "RF64")  # whether the header knows how many there are
    while not (exact and 0 < file.frames <= count) and len(samples := file.read(block, "float32", always_2d=True)):
        if not np.isfinite(samples).all():
            raise AudioError(f"{path}: holds NaN or infinite samples; the recording is damaged, export it again")
        count += len(samples)
        yield np.ascontiguousarray(samples.mean(axis=1) if file.channels > 1 else samples[:, 0])
    if not count:
        raise AudioError(f"{path}: holds no samples; record it again")
    if exact and count < file.frames:
        raise AudioError(f"{path}: truncated: {count} of {file.frames} samples can be read; copy it again")


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


@contextmanager
def _opened(member: TarMember) -> Iterator[BinaryIO]:
    """A member of a tar as a file, checked as `_check_file` does."""
    name = Path(str(member))
    if not member.size:
        raise AudioError(f"{name}: is empty (0 bytes); record or copy it again")
    try:
        file = cast(BinaryIO, member.open())
    except OSError as error:
        raise AudioError(f"{name}: cannot be opened ({error.strerror})") from None
    with file:
        check_wav_is_whole(name, file, member.size)
        file.seek(0)
        yield file


def _check_file(path: Path) -> None:
    try:
        found = path.stat()
    except OSError as error:  # missing, a link to itself, a name too long, no permission
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error.strerror})"
        raise AudioError(f"{path}: {reason}") from None
    if stat.S_ISDIR(found.st_mode):
        raise AudioError(f"{path}: is a folder; name one audio file")
    if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
        raise AudioError(f"{path}: is not a regular file; name one audio file")
    if not found.st_size:
        raise AudioError(f"{path}: is empty (0 bytes); record or copy it again")
    with path.open("rb") as file:
        check_wav_is_whole(path, file, found.st_size)


def check_wav_is_whole(path: Path, file: BinaryIO, size: int) -> None:
    """Libsndfile takes a wav file that was cut off for a shorter one; its header knows better.

    Args:
        path: For the message.
        file: Open at its start; any format, only wav is checked.
        size: Its bytes.

    Raises:
        AudioError: The samples end too early.
    """
    if file.read(4) != b"RIFF":
        return
    file.seek(12)
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        end = file.tell() + length
        if name == b"data":
            unknown = length >= 0xFFFFFFF0 or length == 0  # as programs write it that stream into a pipe
            if end > size and not unknown:
                missing = f"{size - file.tell()} of {length} bytes of its samples are there"
                raise AudioError(f"{path}: truncated: {missing}; copy it again")
            return
        file.seek(end + length % 2)
