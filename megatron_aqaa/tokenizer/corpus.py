"""Tokenizing many recordings in blocks, by several processes, so that an interrupted run continues where it was.

A block of lines becomes one file, complete or not there: the tokens depend on the inputs alone, not on the number of
workers nor on interruptions. A line whose audio cannot be used is set aside with the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from megatron_aqaa.audio.io import AudioError, duration_s, load_waveform
from megatron_aqaa.tokenizer.features import SAMPLE_RATE_HZ
from megatron_aqaa.tokenizer.open import open_tokenizer
from megatron_aqaa.tokenizer.speech import SpeechTokenizer
from megatron_aqaa.tokenizer.workers import map_blocks

Ids = npt.NDArray[np.int64]


MAX_DURATION_S = 4 * 3600.0
_LONG_S = 60.0  # what is longer is read piece by piece


class Block(NamedTuple):
    """Tokens of some lines.

    Attributes:
        token_ids: of each line, groups `[L L S S S]`; none where it is rejected.
        rejects: number of the line in the block → reason.
    """

    token_ids: list[Ids]
    rejects: dict[int, str]


@dataclass(frozen=True)
class BlockTokenizer:
    """Tokenizes recordings in blocks of lines.

    Attributes:
        tokenizer: tokenizer directory.
        audio: the recording of each line.
        directory: of the block files.
        lines_per_block: unit of work and of resuming; within it, recordings of like length share a batch.
        batch_size: recordings encoded at a time.
        max_duration_s: longer recordings are rejected.
    """

    tokenizer: Path
    audio: Sequence[str]
    directory: Path
    lines_per_block: int = 256
    batch_size: int = 32
    max_duration_s: float = MAX_DURATION_S

    def blocks(self) -> list[range]:
        """Lines of each block."""
        starts = range(0, len(self.audio), self.lines_per_block)
        return [range(start, min(start + self.lines_per_block, len(self.audio))) for start in starts]

    def path(self, block: range) -> Path:
        """File of a block."""
        return self.directory / f"{block.start:08d}.npz"

    def run(self, num_workers: int) -> Iterator[int]:
        """Make the blocks that are not there; yields the number of lines done so far, first at the start."""
        missing = [block for block in self.blocks() if not self.path(block).exists()]
        done = len(self.audio) - sum(map(len, missing))
        yield done
        for count in map_blocks(self.make, missing, num_workers):
            done += count
            yield done

    def make(self, block: range) -> int:
        """Tokenize the lines of a block into its file; returns their number."""
        torch.set_num_threads(1)
        tokenizer = open_tokenizer(self.tokenizer)
        features: dict[int, torch.Tensor] = {}
        token_ids: dict[int, Ids] = {}
        rejects: dict[int, str] = {}
        for line in block:
            try:
                if self._is_long(self.audio[line]):
                    token_ids[line] = tokenizer.token_ids(tokenizer.encode_file(self.audio[line]))
                else:
                    features[line] = tokenizer.features(load_waveform(self.audio[line], SAMPLE_RATE_HZ))
            except ValueError as error:
                named = self.audio[line] in str(error)
                rejects[line - block.start] = str(error) if named else f"{self.audio[line]}: {error}"
        token_ids |= _encode(tokenizer, features, self.batch_size)
        _write(self.path(block), Block([token_ids.get(line, np.empty(0, np.int64)) for line in block], rejects))
        return len(block)

    def _is_long(self, path: str) -> bool:
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

    def read(self, block: range) -> Block:
        """Content of a finished block."""
        content = np.load(self.path(block))
        borders = np.cumsum(content["lengths"])[:-1]
        rejects = {int(line): reason for line, reason in json.loads(str(content["rejects"])).items()}
        return Block(np.split(content["token_ids"], borders), rejects)


def _encode(tokenizer: SpeechTokenizer, features: dict[int, torch.Tensor], batch_size: int) -> dict[int, Ids]:
    """Token ids of the lines; like lengths together, so that little is padding."""
    order = sorted(features, key=lambda line: len(features[line]))
    token_ids = {}
    for start in range(0, len(order), batch_size):
        lines = order[start : start + batch_size]
        for line, codes in zip(lines, tokenizer.encode_features([features[i] for i in lines]), strict=True):
            token_ids[line] = tokenizer.token_ids(codes)
    return token_ids


def _write(path: Path, block: Block) -> None:
    # named by process: workers outlive a parent that was killed, and may be at the same block as those of the next run
    partial_path = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
    lengths = [len(ids) for ids in block.token_ids]
    np.savez(
        partial_path, token_ids=np.concatenate(block.token_ids), lengths=lengths, rejects=json.dumps(block.rejects)
    )
    os.replace(partial_path, path)
