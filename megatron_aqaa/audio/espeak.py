"""Speech from text with exact phone times, by espeak-ng through ctypes (package `espeakng-loader`, no system package).

About 300 times real time on one core, over a hundred voices, any English sentence. The library keeps state from one
utterance to the next (oscillator phases, random numbers), so the same call sounds slightly different each time. An
`Espeak` object therefore loads a private copy of the library: what it says depends only on its seed and on what it
said before, never on other engines in the process.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

SILENCE = "_"

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _PHONEME_EVENTS, _DO_NOT_EXIT, _UTF8 = 2, 0x0001, 0x8000, 1
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4
_EVENT_END, _EVENT_PHONEME = 0, 7
# The library keeps its data path in 160 bytes and fails beyond that.
_LONGEST_DATA_PATH = 130


class SpeechEngineError(RuntimeError):
    """The speech engine cannot be used on this machine; the message says what to install."""


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Phone:
    """A phone lasts from `start_s` to the start of the next one. Stress is part of the symbol (`'E` and `E`)."""

    start_s: float
    symbol: str


@dataclass(frozen=True)
class Speech:
    """A mono waveform and the phones in it; the first phone starts at 0.

    Attributes:
        samples: [N] int16.
        sample_rate_hz: samples per second.
        phones: in order of time; pauses are `SILENCE`.
    """

    samples: NDArray[np.int16]
    sample_rate_hz: int
    phones: tuple[Phone, ...]


class Espeak:
    """One speech engine. Use as a context manager, or call `close`."""

    def __init__(self, seed: int = 0) -> None:
        library_path, data_path = _locate()
        self._directory = tempfile.TemporaryDirectory(prefix="espeak-")
        self._library = ctypes.CDLL(shutil.copy(library_path, self._directory.name))
        self.variants = frozenset(os.listdir(data_path / "voices" / "!v"))
        path = str(_shortened(data_path, Path(self._directory.name))).encode()
        self.sample_rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, 500, path, _PHONEME_EVENTS | _DO_NOT_EXIT)
        if self.sample_rate_hz <= 0:
            raise SpeechEngineError(f"espeak-ng refuses its voice data in {data_path}: reinstall espeakng-loader")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._chunks: list[NDArray[np.int16]] = []
        self._phones: list[Phone] = []
        self._callback = _Callback(self._collect)  # the library keeps only a pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def __enter__(self) -> Espeak:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unloads the private copy of the library. The engine cannot be used afterwards."""
        self._library.espeak_Terminate()
        _ctypes.dlclose(self._library._handle)
        self._directory.cleanup()

    def speak(self, text: str, voice: str = "en-us+f2", rate_wpm: int = 165, pitch: int = 50) -> Speech:
        """Speaks `text`.

        Args:
            text: English words.
            voice: language and variant, `en-us+f2`; the variants are in `self.variants`.
            rate_wpm: words per minute, 80–450.
            pitch: 0–100, 50 is the voice's own.

        Returns:
            The waveform as the library makes it, with the pauses it puts around the words.

        Raises:
            ValueError: empty text or unknown voice.
        """
        if not text.strip():
            raise ValueError("nothing to say: the text is empty")
        self._select(voice)
        for parameter, value in ((_RATE, rate_wpm), (_PITCH, pitch), (_PITCH_RANGE, 50)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        self._phones.clear()
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._chunks)
        return Speech(samples, self.sample_rate_hz, tuple(_merge_silences(self._phones)))

    def _select(self, voice: str) -> None:
        # The library accepts an unknown variant in silence and speaks with the plain voice.
        variant = voice.partition("+")[2]
        if variant and variant not in self.variants:
            raise ValueError(f"voice {voice!r}: no variant {variant!r}; there are {', '.join(sorted(self.variants))}")
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"voice {voice!r}: espeak-ng has no such language; try en-us+f2")

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        for event in events:
            if event.type == _EVENT_END:
                break
            if event.type == _EVENT_PHONEME:
                symbol = bytes(event.id.string).split(b"\0")[0].decode("utf8", "replace")
                self._phones.append(Phone(event.sample / self.sample_rate_hz, symbol))
        return 0


def _locate() -> tuple[Path, Path]:
    remedy = "pip install espeakng-loader==0.2.4"
    try:
        import espeakng_loader
    except ImportError:
        raise SpeechEngineError(f"synthetic speech needs the package espeakng-loader: {remedy}") from None
    library_path, data_path = Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())
    for path in (library_path, data_path / "phontab"):
        if not path.exists():
            raise SpeechEngineError(f"{path} is missing; the package is damaged: {remedy} --force-reinstall")
    return library_path, data_path


def _shortened(data_path: Path, directory: Path) -> Path:
    if len(str(data_path)) <= _LONGEST_DATA_PATH:
        return data_path
    link = directory / "espeak-ng-data"
    link.symlink_to(data_path)
    return link


def _merge_silences(phones: list[Phone]) -> list[Phone]:
    """All pauses become one `SILENCE`; the linking mark `;` belongs to the phone before it."""
    merged = [Phone(0.0, SILENCE)]
    for phone in phones:
        symbol = SILENCE if phone.symbol.startswith("_") else phone.symbol
        if symbol == ";" or symbol == merged[-1].symbol == SILENCE:
            continue
        merged.append(Phone(phone.start_s, symbol))
    return merged
