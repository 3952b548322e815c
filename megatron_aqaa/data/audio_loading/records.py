"""What there is to load: the recordings of a manifest, of a folder or of WebDataset tars, and how long each is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megatron_aqaa.audio.io import AudioError, duration_s
from megatron_aqaa.audio.tar_member import TarMember
from megatron_aqaa.data.tar_index import index_tar
from megatron_aqaa.data.tar_paths import tar_paths

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_AUDIO_KEYS = ("audio", "audio_filepath")  # ours, NeMo's
_DURATION_KEYS = ("duration_s", "duration")


@dataclass(frozen=True)
class AudioSource:
    """Where the recordings are.

    Attributes:
        path: The manifest, the folder, or the tars: a folder of them, one of them, `train-*.tar`, `train-{00..31}.tar`.
        kind: "manifest": JSON Lines with `audio` and `duration_s` (or NeMo's `audio_filepath` and `duration`), paths
            relative to the manifest; a header is read only where the duration is missing.
            "folder": all files below that end in .wav, .flac, .ogg, .opus or .mp3; their headers are read.
            "webdataset": uncompressed tars; a sample is a recording and its `.json` or `.txt`, see `tar_index`. Headers
            are read where the `.json` tells no duration.
        min_duration_s: Shorter recordings are set aside.
        max_duration_s: Longer ones are set aside.
    """

    path: Path
    kind: Literal["manifest", "folder", "webdataset"] = "manifest"
    min_duration_s: float = 0.1
    max_duration_s: float = 60.0

    def __post_init__(self) -> None:
        """Raises ValueError for a range that holds nothing."""
        if not 0 < self.min_duration_s < self.max_duration_s:
            raise ValueError(
                f"min_duration_s {self.min_duration_s} must be positive and below max_duration_s {self.max_duration_s}"
            )


@dataclass(frozen=True, slots=True)
class AudioRecord:
    """A recording.

    Attributes:
        id: `id` of its manifest line, else its path as the manifest, the folder or the tar has it.
        audio: Its file, or its place in a tar.
        duration_s: As the manifest or the header says.
        fields: What else the manifest line or the tar's `.json` says; a tar's `.txt` is `text`.
    """

    id: str
    audio: Path | TarMember
    duration_s: float
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.audio)


class Reject(NamedTuple):
    """A recording that was set aside.

    Attributes:
        audio: Its name.
        reason: What is wrong with it, and what would help.
    """

    audio: str
    reason: str


class RecordIndex(NamedTuple):
    """All records of a source, in its order, and what was set aside."""

    records: list[AudioRecord]
    rejects: list[Reject]


def read_index(source: AudioSource) -> RecordIndex:
    """Find the recordings of a source.

    Raises:
        ValueError: No such source, a manifest line that is no record, or nothing that can be used.
    """
    index = RecordIndex([], [])
    for found in _READERS[source.kind](source.path):
        kept = _kept(found, source) if isinstance(found, AudioRecord) else found
        if isinstance(kept, AudioRecord):
            index.records.append(kept)
        else:
            index.rejects.append(kept)
    if not index.records:
        first = f"; the first: {index.rejects[0].reason}" if index.rejects else ""
        raise ValueError(f"{source.path}: no usable recording, {len(index.rejects)} set aside{first}")
    return index


def _kept(record: AudioRecord, source: AudioSource) -> AudioRecord | Reject:
    shortest, longest = source.min_duration_s, source.max_duration_s
    if shortest <= record.duration_s <= longest:
        return record
    rule = f"taken are {shortest:g} … {longest:g} s: cut it, or change min_duration_s or max_duration_s"
    return Reject(record.name, f"{record.name}: {record.duration_s:.3f} s; {rule}")


def _manifest(path: Path) -> Iterator[AudioRecord | Reject]:
    try:
        lines = path.open(encoding="utf-8", errors="surrogateescape")  # file names need not be UTF-8
    except OSError as error:
        raise ValueError(f"{path}: no manifest that can be read ({error.strerror})") from None
    with lines:
        for number, line in enumerate(lines, start=1):
            yield _of_line(line, path, f"{path}:{number}")


def _of_line(line: str, manifest: Path, where: str) -> AudioRecord | Reject:
    try:
        raw = json.loads(line)
        audio = next(raw[key] for key in _AUDIO_KEYS if key in raw)
    except (json.JSONDecodeError, TypeError, StopIteration) as error:
        raise ValueError(f"{where}: not a record with a key 'audio' ({error!r})") from None
    if not isinstance(audio, str):
        raise ValueError(f"{where}: audio = {audio!r}; expected a path")
    path = manifest.parent / audio
    if raw.get("offset"):
        return Reject(str(path), f"{path}: the manifest asks for a part (offset {raw['offset']} s); cut the recording")
    return _with_duration(str(raw.get("id", audio)), path, raw)


def _with_duration(identity: str, audio: Path | TarMember, fields: Mapping[str, Any]) -> AudioRecord | Reject:
    told = next((fields[key] for key in _DURATION_KEYS if key in fields), None)
    try:
        seconds = float(told) if isinstance(told, int | float) else duration_s(audio)
    except AudioError as error:
        return Reject(str(audio), str(error))
    return AudioRecord(identity, audio, seconds, fields)


def _folder(path: Path) -> Iterator[AudioRecord | Reject]:
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder")
    for directory, folders, files in os.walk(path, onerror=_refuse):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES):
                file = Path(directory, name)
                yield _with_duration(str(file.relative_to(path)), file, {})


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename}: a folder that cannot be read ({error.strerror})") from None


def _webdataset(path: Path) -> Iterator[AudioRecord | Reject]:
    for tar in tar_paths(path):
        for line in index_tar(tar):
            if "rejected" in line:
                yield Reject(line["audio"], line["rejected"])
                continue
            name = line["audio"].removeprefix(f"{tar}#")
            yield _with_duration(str(line.get("id", name)), TarMember(tar, name, *line["member"]), line)


_READERS: dict[str, Callable[[Path], Iterator[AudioRecord | Reject]]] = {
    "manifest": _manifest,
    "folder": _folder,
    "webdataset": _webdataset,
}
