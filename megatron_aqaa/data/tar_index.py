"""What a WebDataset tar holds: its samples, each a recording and its words, and everything in it that cannot be used.

Members of one name before the first dot of the file's name, one after the other, are a sample: `a/17.flac`,
`a/17.json`, `a/17.txt`. A line of the index is a record of a manifest, with `audio` as `<tar>#<member>` and `member` as
`[offset, size]`, so that the recording is read where it lies; or it has `rejected`, the reason why there is none.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

AUDIO_SUFFIXES = ("wav", "flac", "ogg", "opus", "mp3")
_TEXT_SUFFIXES = ("json", "txt")
_HEADER_BYTES = 512

Record = dict[str, Any]


def index_tar(tar: Path) -> list[Record]:
    """A line for every sample of a tar in its order, and one for damage that ends what can be read of it.

    Raises:
        OSError: there is no such file.
    """
    lines: list[Record] = []
    seen: set[str] = set()
    infos, damage = _headers(tar)
    with tar.open("rb") as file:
        for key, members in groupby(filter(_key, infos), _key):
            lines.append(_line(tar, file.fileno(), key, list(members), key in seen))
            seen.add(key)
    if not lines and not damage:
        damage = f"holds no samples, such as 17.flac and 17.json, but {len(infos)} other members"
    return [*lines, {"audio": str(tar), "rejected": f"{tar}: {damage}"}] if damage else lines


def _headers(tar: Path) -> tuple[list[tarfile.TarInfo], str]:
    """All members, and what is wrong behind them, if anything is."""
    size, infos = tar.stat().st_size, list[tarfile.TarInfo]()
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                infos.append(info)
            end = archive.offset
    except (tarfile.TarError, OSError) as error:
        if not infos:
            return [], f"not readable as an uncompressed tar ({error}); copy it again"
        end = size
    # Python's reader takes damage behind the first member for the end of the tar, which really is a block of zeros.
    with tar.open("rb") as file:
        if os.pread(file.fileno(), _HEADER_BYTES, end) == bytes(_HEADER_BYTES):
            return infos, ""
    return infos, f"damaged or cut off behind {infos[-1].name}; copy it again, what followed is not in the data set"


def _key(info: tarfile.TarInfo) -> str:
    """Name before the first dot; empty for what belongs to no sample."""
    folder, slash, name = info.name.rpartition("/")
    stem = name.partition(".")[0]
    belongs = stem and not info.isdir() and _suffix(info) in (*AUDIO_SUFFIXES, *_TEXT_SUFFIXES)
    return folder + slash + stem if belongs else ""


def _suffix(info: tarfile.TarInfo) -> str:
    return info.name.rpartition(".")[2].lower()


def _line(tar: Path, file: int, key: str, members: list[tarfile.TarInfo], is_second: bool) -> Record:
    """The line of one sample."""
    audio = [info for info in members if _suffix(info) in AUDIO_SUFFIXES]
    where = f"{tar}#{(audio or members)[0].name}"
    try:
        if is_second:
            raise ValueError(f"a second sample of the key {key!r}; members of a sample must follow each other")
        _check_members(tar, members)
        if len(audio) != 1:
            found = ", ".join(info.name for info in audio) or "none"
            raise ValueError(f"the key {key!r} must have one recording ({', '.join(AUDIO_SUFFIXES)}), found {found}")
        fields = _fields({_suffix(i): os.pread(file, i.size, i.offset_data) for i in members if i not in audio}, key)
    except ValueError as error:
        return {"audio": where, "rejected": f"{where}: {error}"}
    return {**fields, "audio": where, "member": [audio[0].offset_data, audio[0].size]}


def _check_members(tar: Path, members: Iterable[tarfile.TarInfo]) -> None:
    """Raise ValueError for a member that is not a whole, plain file, or is there twice."""
    size, seen = tar.stat().st_size, set[str]()
    for info in members:
        if not info.isfile() or info.issparse():
            raise ValueError(f"{info.name} is a link or no plain file; pack it with tar --dereference")
        if info.offset_data + info.size > size:
            there = max(0, size - info.offset_data)
            raise ValueError(f"the tar ends in {info.name}: truncated, {there} of {info.size} bytes; copy it again")
        if info.name in seen:
            raise ValueError(f"{info.name} is there twice")
        seen.add(info.name)


def _fields(texts: Mapping[str, bytes], key: str) -> Record:
    """What `.json` and `.txt` say; a `.txt` is the text where the `.json` has none."""
    fields: Record = {}
    if "json" in texts:
        try:
            fields = json.loads(texts["json"])
        except ValueError as error:
            raise ValueError(f"{key}.json is not JSON ({error})") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{key}.json: expected a JSON object, found {str(fields)[:40]!r}")
    if "txt" in texts and fields.get("text") is None:
        try:
            fields["text"] = texts["txt"].decode().strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{key}.txt is not UTF-8 text ({error})") from None
    return fields
