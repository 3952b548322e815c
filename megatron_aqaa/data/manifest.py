"""The speech manifest: one JSON record a line, one line a recording."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Role = Literal["user", "assistant"]
ROLES: tuple[Role, ...] = ("user", "assistant")
_NAMES = ("text", "role", "split", "duration_s", "speaker", "style", "answer")
_DEFAULTS: Mapping[str, Any] = {"text": "", "role": "", "split": "train", "duration_s": 0.0}


@dataclass(frozen=True)
class Recording:
    """A record, as far as training and evaluation read it.

    Attributes:
        line: Line of the manifest, from 0; also the sequence number of its tokens in `audio.bin/.idx`.
        audio: The waveform's file; the manifest names it relative to itself.
        text: What is said; empty if nobody knows.
        role: "user" or "assistant"; empty where the manifest does not tell: then it stands for both.
        split: "train" or the name of a held-out set.
        duration_s: Length; 0 where the manifest does not tell.
        id: Number that names the recording in results; the line where the record has no number.
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
    """All recordings, in the order of their lines; a record needs nothing but its `audio`.

    Raises:
        ValueError: No such file, no records, or a bad record; the message names the line, the key and the value.
    """
    try:
        # not splitlines: it also splits at characters that JSON allows within a text
        lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such manifest; the speech stage writes it") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    if lines == [""]:
        raise ValueError(f"{path}: no records; run the speech stage again")
    return [_parse(line, number, Path(path)) for number, line in enumerate(lines)]


def select(recordings: Sequence[Recording], split: str, roles: Collection[str] = ROLES) -> list[Recording]:
    """Recordings of one split and of these roles, or of no role."""
    wanted = {*roles, ""} if roles else ()
    return [recording for recording in recordings if recording.split == split and recording.role in wanted]


def spread(recordings: Sequence[Recording], limit: int) -> list[Recording]:
    """At most `limit` of them, evenly from first to last."""
    count = min(limit, len(recordings))
    return [recordings[i * len(recordings) // count] for i in range(count)]


def _parse(line: str, number: int, path: Path) -> Recording:
    where = f"{path}:{number + 1}"
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON record ({error}); is the file cut off?") from None
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where}: expected a JSON object, found {line[:40]!r}")
    _check(raw, where)
    known = {**_DEFAULTS, **{name: raw[name] for name in _NAMES if raw.get(name) is not None}}
    known["text"] = known["text"].strip()
    identity = raw["id"] if isinstance(raw.get("id"), int) else number
    return Recording(line=number, audio=path.parent / raw["audio"], id=identity, **known)


def _check(raw: Mapping[str, Any], where: str) -> None:
    if not isinstance(raw.get("audio"), str):
        raise ValueError(f"{where}: audio = {raw.get('audio')!r}; expected the name of a file")
    for name in _NAMES:
        value, kind = raw.get(name), int | float if name == "duration_s" else str
        if value is not None and not isinstance(value, kind):
            wanted = "a number" if name == "duration_s" else "a text"
            raise ValueError(f"{where}: {name} = {value!r}; expected {wanted}, or none")
    if raw.get("role") not in (*ROLES, "", None):
        raise ValueError(f"{where}: role = {raw['role']!r}; expected user, assistant, or none")
