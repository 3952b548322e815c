"""The speech manifest: one JSON record a line, one line a recording."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Recording:
    """A record, as far as training and evaluation read it.

    Attributes:
        line: Line of the manifest, from 0; also the sequence number of its tokens in `audio.bin/.idx`.
        audio: The waveform's file; the manifest names it relative to itself.
        text: What is said.
        role: "user" or "assistant".
        split: "train" or the name of a held-out set.
        duration_s: Length.
        id: Number that names the recording in results; the line where the record has none.
        speaker: Who speaks.
        style: Manner of speaking that is asked for (user) or spoken (assistant).
        answer: Text of the right answer; empty if the recording asks nothing.
    """

    line: int
    audio: Path
    text: str
    role: str
    split: str
    duration_s: float
    id: int
    speaker: str = ""
    style: str = "neutral"
    answer: str = ""


def read_recordings(path: str | Path) -> list[Recording]:
    """All recordings, in the order of their lines.

    Raises:
        ValueError: No such file, no records, or a bad record; the message names the line, the key and the value.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such manifest; the speech stage writes it") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    if not lines:
        raise ValueError(f"{path}: no records; run the speech stage again")
    return [_parse(line, number, Path(path)) for number, line in enumerate(lines)]


def select(recordings: Sequence[Recording], split: str, roles: Collection[str] = ROLES) -> list[Recording]:
    """Recordings of one split and of these roles."""
    return [recording for recording in recordings if recording.split == split and recording.role in roles]


def _parse(line: str, number: int, path: Path) -> Recording:
    where = f"{path}:{number + 1}"
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON record ({error}); is the file cut off?") from None
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where}: expected a JSON object, found {line[:40]!r}")
    _check(raw, where)
    names = ("text", "role", "split", "duration_s", "speaker", "style", "answer")
    known = {name: raw[name] for name in names if raw.get(name) is not None}
    return Recording(line=number, audio=path.parent / raw["audio"], id=raw.get("id", number), **known)


def _check(raw: Mapping[str, Any], where: str) -> None:
    for name in ("audio", "text", "role", "split"):
        if not isinstance(raw.get(name), str):
            raise ValueError(f"{where}: {name} = {raw.get(name)!r}; expected a text")
    if not isinstance(raw.get("duration_s"), int | float):
        raise ValueError(f"{where}: duration_s = {raw.get('duration_s')!r}; expected a number")
    if raw["role"] not in ROLES:
        raise ValueError(f"{where}: role = {raw['role']!r}; expected user or assistant")
    if not raw["text"].strip():
        raise ValueError(f"{where}: text is empty; every recording needs its words")
