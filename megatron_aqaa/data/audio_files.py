"""A look at audio files before they are tokenized, each once."""

from __future__ import annotations

from pathlib import Path

import soundfile

from megatron_aqaa.audio.io import AudioError, load_waveform
from megatron_aqaa.data.chat_parser import ChatError

_SHORTEST_S = 0.06  # half a group of tokens


class AudioFiles:
    """Tells which audio files cannot be used.

    Args:
        decode: read them to the end, as the tokenizer will; otherwise their heads only (about 0.1 ms a file).
    """

    def __init__(self, decode: bool = False) -> None:
        self.decode = decode
        self._faults: dict[Path, tuple[str, str] | None] = {}

    def check(self, path: Path) -> None:
        """Raise `ChatError` if a file is missing or cannot be read as speech."""
        if path not in self._faults:
            self._faults[path] = self._fault(path)
        fault = self._faults[path]
        if fault:
            raise ChatError(*fault)

    def _fault(self, path: Path) -> tuple[str, str] | None:
        """Problem and reason."""
        try:
            if not path.is_file():
                return "missing audio", f"{path}: no such file"
            duration_s = len(load_waveform(path)) / 16000 if self.decode else soundfile.info(path).duration
        except AudioError as error:
            return "unreadable audio", str(error)
        except (soundfile.LibsndfileError, OSError) as error:
            return "unreadable audio", f"{path}: not readable as wav, flac, ogg or mp3 ({error})"
        if duration_s < _SHORTEST_S:
            return "unreadable audio", f"{path}: {duration_s:.3f} s; speech needs at least {_SHORTEST_S} s"
        return None
