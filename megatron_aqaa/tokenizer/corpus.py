"""Tokenizing many recordings in blocks, by several processes, so that an interrupted run continues where it was.

A block becomes one file, complete or not there: the tokens depend on the inputs alone, not on the number of workers or
machines nor on interruptions. A recording that cannot be used is set aside with the reason.
"""

from __future__ import annotations

import json
import os
import secrets
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from megatron_aqaa.audio.io import AudioError, duration_s, load_waveform
from megatron_aqaa.audio.tar_member import TarMember
from megatron_aqaa.tokenizer.features import SAMPLE_RATE_HZ
from megatron_aqaa.tokenizer.open import open_tokenizer, tokenizer_files
from megatron_aqaa.tokenizer.speech import SpeechTokenizer
from megatron_aqaa.tokenizer.workers import map_blocks

Ids = npt.NDArray[np.int64]


MAX_DURATION_S = 4 * 3600.0
_LONG_S = 60.0  # what is longer is read piece by piece


class Unusable(NamedTuple):
    """A recording that is known to be of no use before it is read.

    Attributes:
        name: of the recording.
        reason: names it too.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return self.name


Audio = str | TarMember | Unusable
"""A recording: a file, a member of a tar, or none."""


class BlockTokens(NamedTuple):
    """Tokens of a block.

    Attributes:
        token_ids: of each recording, groups `[L L S S S]`; none where it is rejected.
        rejects: number of the recording in the block → reason.
        took_s: processor time that they cost.
    """

    token_ids: list[Ids]
    rejects: dict[int, str]
    took_s: float


@dataclass(frozen=True)
class Block:
    """Some recordings: the unit of work and of resuming.

    Attributes:
        path: file of their tokens.
        audio: the recordings.
    """

    path: Path
    audio: tuple[Audio, ...]

    def __len__(self) -> int:
        return len(self.audio)

    def is_done(self) -> bool:
        """Whether its file is there."""
        return self.path.exists()

    def read(self) -> BlockTokens:
        """Content of its file.

        Raises:
            ValueError: it cannot be read; names it.
        """
        try:
            with np.load(self.path) as content:
                borders = np.cumsum(content["lengths"])[:-1]
                rejects = {int(line): reason for line, reason in json.loads(str(content["rejects"])).items()}
                took_s = float(content["took_s"]) if "took_s" in content else 0.0
                return BlockTokens(np.split(content["token_ids"], borders), rejects, took_s)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.path}: not a block of tokens ({error}); delete it and tokenize again") from None


def chop(audio: Sequence[Audio], directory: Path, prefix: str, lines_per_block: int) -> list[Block]:
    """Blocks of consecutive recordings, named by the number of the first."""
    starts = range(0, len(audio), lines_per_block)
    paths = (directory / f"{prefix}{start:08d}.npz" for start in starts)
    return [Block(path, tuple(audio[s : s + lines_per_block])) for path, s in zip(paths, starts, strict=True)]


@dataclass(frozen=True)
class BlockTokenizer:
    """Tokenizes blocks of recordings.

    Attributes:
        tokenizer: tokenizer directory.
        batch_size: recordings encoded at a time, those of like length of a block together.
        max_duration_s: longer recordings are rejected.
    """

    tokenizer: Path
    batch_size: int = 32
    max_duration_s: float = MAX_DURATION_S

    def run(self, blocks: Sequence[Block], num_workers: int) -> Iterator[int]:
        """Make the blocks that are not there; yields the number of recordings done so far, first at the start."""
        missing = [block for block in blocks if not block.is_done()]
        done = sum(map(len, blocks)) - sum(map(len, missing))
        yield done
        for count in map_blocks(self.make, missing, num_workers):
            done += count
            yield done

    def make(self, block: Block) -> int:
        """Tokenize a block into its file; returns the number of its recordings."""
        torch.set_num_threads(1)
        started_s, tokenizer = time.process_time(), _opened(self.tokenizer)
        features: dict[int, torch.Tensor] = {}
        token_ids: dict[int, Ids] = {}
        rejects: dict[int, str] = {}
        for line, audio in enumerate(block.audio):
            if isinstance(audio, Unusable):
                rejects[line] = audio.reason
                continue
            try:
                if self._is_long(audio):
                    token_ids[line] = tokenizer.token_ids(tokenizer.encode_file(audio))
                else:
                    features[line] = tokenizer.features(load_waveform(audio, SAMPLE_RATE_HZ))
            except ValueError as error:
                rejects[line] = str(error) if str(audio) in str(error) else f"{audio}: {error}"
        token_ids |= _encode(tokenizer, features, self.batch_size)
        found = [token_ids.get(line, np.empty(0, np.int64)) for line in range(len(block))]
        _write(block.path, BlockTokens(found, rejects, time.process_time() - started_s))
        return len(block)

    def _is_long(self, path: str | TarMember) -> bool:
        """Whether a recording is encoded alone, piece by piece.

        Raises:
            AudioError: it cannot be read, or is longer than `max_duration_s`.
        """
        seconds = duration_s(path)
        if seconds > self.max_duration_s:
            raise AudioError(
                f"{path}: {seconds / 3600:.1f} h; at most {self.max_duration_s / 3600:g} h are taken: cut it, or raise "
                f"max_duration_s"
            )
        return seconds > _LONG_S


def _opened(directory: Path) -> SpeechTokenizer:
    """The tokenizer, read once by each process."""
    stats = [path.stat() for path in tokenizer_files(directory)]
    return _open(directory, tuple((found.st_size, found.st_mtime_ns) for found in stats))


@lru_cache(1)
def _open(directory: Path, _version: tuple[tuple[int, int], ...]) -> SpeechTokenizer:
    return open_tokenizer(directory)


def _encode(tokenizer: SpeechTokenizer, features: dict[int, torch.Tensor], batch_size: int) -> dict[int, Ids]:
    """Token ids of the lines; like lengths together, so that little is padding."""
    order = sorted(features, key=lambda line: len(features[line]))
    token_ids = {}
    for start in range(0, len(order), batch_size):
        lines = order[start : start + batch_size]
        for line, codes in zip(lines, tokenizer.encode_features([features[i] for i in lines]), strict=True):
            token_ids[line] = tokenizer.token_ids(codes)
    return token_ids


def _write(path: Path, tokens: BlockTokens) -> None:
    # a name of its own: workers outlive a parent that was killed, and a task that was put back in the queue may run on
    # another machine while it still runs on the first; both are then at the same block
    partial_path = path.with_name(f"{path.stem}.{secrets.token_hex(6)}.partial.npz")
    lengths, rejects = [len(ids) for ids in tokens.token_ids], json.dumps(tokens.rejects)
    token_ids = np.concatenate(tokens.token_ids)
    np.savez(partial_path, token_ids=token_ids, lengths=lengths, rejects=rejects, took_s=tokens.took_s)
    os.replace(partial_path, path)
