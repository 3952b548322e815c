"""Where recordings come from: the lines of a manifest, or the samples of WebDataset tars; in blocks, for tokenizing."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_aqaa.audio.tar_member import TarMember
from megatron_aqaa.data.tar_index import index_tar
from megatron_aqaa.data.tar_paths import names_tars, tar_paths
from megatron_aqaa.tokenizer.corpus import Audio, Block, Unusable, chop
from megatron_aqaa.tokenizer.workers import map_blocks
from megatron_aqaa.whole_file import partial_path, write_whole


class SpeechSource(ABC):
    """Recordings in units that shards share among them.

    Attributes:
        files: what they lie in.
        num_units: units there are.
        unit_name: what they are, for messages.
    """

    files: Sequence[Path]
    num_units: int
    unit_name: str

    @abstractmethod
    def prepare(self, units: Sequence[int], num_workers: int) -> Iterator[int]:
        """Do what must be done before `blocks` of these units; yields how many of them are ready."""

    @abstractmethod
    def is_prepared(self, unit: int) -> bool:
        """Whether it was."""

    @abstractmethod
    def blocks(self, unit: int) -> list[Block]:
        """The blocks of a unit, which is prepared."""

    @abstractmethod
    def manifest(self, output: Path) -> Path:
        """A manifest of all recordings, line by line those of all blocks; every unit is prepared."""

    def is_done(self, unit: int) -> bool:
        """Whether all blocks of a unit are there."""
        return self.is_prepared(unit) and all(block.is_done() for block in self.blocks(unit))


def open_source(path: Path, directory: Path, lines_per_block: int, require_text: bool) -> SpeechSource:
    """The recordings that `path` names.

    Args:
        path: `manifest.jsonl`, or tars: a folder of them, one of them, `train-*.tar`, `train-{000..031}.tar`.
        directory: for the files of blocks, and for what is known of the tars.
        lines_per_block: recordings of a block.
        require_text: recordings without words are rejected.

    Raises:
        ValueError: there is no such file, or a manifest's line names no audio.
    """
    if names_tars(path):
        return TarSource(tar_paths(path), directory, lines_per_block, require_text)
    return ManifestSource(path, directory, lines_per_block, require_text)


class ManifestSource(SpeechSource):
    """The lines of a manifest; a unit is a block of them."""

    unit_name = "blocks"

    def __init__(self, manifest: Path, directory: Path, lines_per_block: int, require_text: bool) -> None:
        self.files = [manifest]
        self._blocks = chop(_read_lines(manifest, require_text), directory, "", lines_per_block)
        self.num_units = len(self._blocks)

    def prepare(self, units: Sequence[int], num_workers: int) -> Iterator[int]:
        """Nothing is to be done."""
        yield len(units)

    def is_prepared(self, unit: int) -> bool:
        """True."""
        return True

    def blocks(self, unit: int) -> list[Block]:
        """A single one."""
        return [self._blocks[unit]]

    def manifest(self, output: Path) -> Path:
        """The manifest itself."""
        return self.files[0]


class TarSource(SpeechSource):
    """The samples of tars; a unit is a tar, so that a shard reads its own tars only.

    `<directory>/<tar's number>.jsonl` is what `index_tar` says of it.
    """

    unit_name = "tars"

    def __init__(self, tars: Sequence[Path], directory: Path, lines_per_block: int, require_text: bool) -> None:
        self.files, self.num_units = tars, len(tars)
        self.directory, self.lines_per_block, self.require_text = directory, lines_per_block, require_text

    def prepare(self, units: Sequence[int], num_workers: int) -> Iterator[int]:
        """Look through the tars that nobody has looked through."""
        missing = [unit for unit in units if not self.is_prepared(unit)]
        done = len(units) - len(missing)
        yield done
        for _ in map_blocks(self._write_index, missing, num_workers):
            done += 1
            yield done

    def is_prepared(self, unit: int) -> bool:
        """Whether the tar's index is there."""
        return self._index(unit).exists()

    def blocks(self, unit: int) -> list[Block]:
        """The tar's samples."""
        with self._index(unit).open() as lines:
            audio = [self._audio(unit, json.loads(line)) for line in lines]
        return chop(audio, self.directory, f"{unit:06d}-", self.lines_per_block)

    def manifest(self, output: Path) -> Path:
        """Writes `<output>/manifest.jsonl`."""
        path = output / "manifest.jsonl"
        with partial_path(path).open("wb") as joined:
            for unit in range(self.num_units):
                with self._index(unit).open("rb") as lines:
                    shutil.copyfileobj(lines, joined)
        partial_path(path).replace(path)
        return path

    def _index(self, unit: int) -> Path:
        return self.directory / f"{unit:06d}.jsonl"

    def _write_index(self, unit: int) -> int:
        lines = index_tar(self.files[unit])
        write_whole(self._index(unit), "".join(json.dumps(line) + "\n" for line in lines))
        return len(lines)

    def _audio(self, unit: int, record: dict[str, Any]) -> Audio:
        if "member" not in record:
            return Unusable(record["audio"], record["rejected"])
        if self.require_text and not _has_text(record):
            return _without_text(record["audio"])
        tar = self.files[unit]
        return TarMember(tar, record["audio"].removeprefix(f"{tar}#"), *record["member"])


def audio_paths(manifest: Path) -> list[str]:
    """The recording of each line of a manifest. See `ManifestSource`."""
    return [str(audio) for audio in _read_lines(manifest, require_text=False)]


def _read_lines(manifest: Path, require_text: bool) -> list[Audio]:
    """The recording of each line.

    Raises:
        ValueError: no such manifest, no lines, or a line without `audio`; the message names it.
    """
    if not manifest.is_file():
        raise ValueError(f"{manifest}: no such manifest; the speech stage writes it")
    found: list[Audio] = []
    with manifest.open(encoding="utf-8", errors="surrogateescape") as lines:  # file names need not be UTF-8
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                audio = str(manifest.parent / record["audio"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{manifest}:{number}: not a record with a key 'audio' ({error!r})") from None
            found.append(_without_text(audio) if require_text and not _has_text(record) else audio)
    if not found:
        raise ValueError(f"{manifest}: no records; run the speech stage again")
    return found


def _has_text(record: dict[str, Any]) -> bool:
    text = record.get("text")
    return isinstance(text, str) and bool(text.strip())


def _without_text(audio: str) -> Unusable:
    return Unusable(audio, f"{audio}: has no text, and require_text is set")
