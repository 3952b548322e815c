"""Features of a whole speech corpus on disk, made once and read by both tokenizer trainers.

A directory holds flat arrays, utterance after utterance, and an index::

    fbank.npy   float16 [T, M]   log-mel features of one front end, 100 Hz
    phones.npy  uint8   [T]      phone index of each 10 ms; 255 where the manifest has no phones
    pitch.npy   float16 [T / 2]  octaves over 150 Hz, 50 Hz; NaN where unvoiced
    done.npy    uint8   [U]      1 for utterances that are written (an interrupted run goes on from there)
    front_end   name of the front end
    index.json  phones, texts [U], offsets [U + 1], splits [U], mean [M], deviation [M]; written last
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from megatron_aqaa.tokenizer.front_ends import FrontEndKind

NO_PHONE = 255
FRONT_END = "front_end"  # its file


def read_front_end(directory: Path) -> str:
    """Name of the front end of a feature directory, finished or not; empty where an earlier version began it."""
    path = directory / FRONT_END
    return path.read_text() if path.is_file() else ""


class Utterance(NamedTuple):
    """Features of one utterance.

    Attributes:
        fbank: [F, M] float16 log-mel features.
        phones: [F] uint8 phone indices, or `NO_PHONE`.
        pitch: [F / 2] float16 octaves over 150 Hz, NaN where unvoiced.
    """

    fbank: np.ndarray
    phones: np.ndarray
    pitch: np.ndarray


@dataclass(frozen=True)
class FeatureStore:
    """Read access to a feature directory; the arrays are mapped, so two trainers share one copy in memory."""

    directory: Path

    @cached_property
    def index(self) -> dict[str, Any]:
        """Content of `index.json`."""
        path = self.directory / "index.json"
        if not path.exists():
            raise ValueError(f"{path}: no finished features here; run tools/extract_features.py first")
        return json.loads(path.read_text())

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        return [np.load(self.directory / f"{name}.npy", mmap_mode="r") for name in Utterance._fields]

    @cached_property
    def lengths(self) -> np.ndarray:
        """[U] frames of each utterance."""
        return np.diff(self.index["offsets"])

    @property
    def phones(self) -> list[str]:
        """Phone names by index; the first, `"_"`, is silence. Empty where the manifest has no phones."""
        return self.index["phones"]

    @property
    def texts(self) -> list[str]:
        """What is said in each utterance."""
        return self.index["texts"]

    @property
    def front_end(self) -> FrontEndKind:
        """What `fbank` was made by."""
        if "texts" not in self.index:
            raise ValueError(
                f"{self.directory}: features of an earlier version; delete the directory and run "
                f"tools/extract_features.py again"
            )
        return cast(FrontEndKind, read_front_end(self.directory))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Utterance:
        start, stop = self.index["offsets"][i : i + 2]
        fbank, phones, pitch = self._arrays
        return Utterance(fbank[start:stop], phones[start:stop], pitch[start // 2 : stop // 2])

    def split(self, *names: str) -> list[int]:
        """Utterances of the named splits."""
        return [i for i, split in enumerate(self.index["splits"]) if split in names]
