"""Audio tokens of the files that chat records name: each file once, in blocks, by several processes or machines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_aqaa.data.audio_tokens import join_blocks
from megatron_aqaa.data.chat_parser import ChatError
from megatron_aqaa.data.finished import digest_of, finish, finished, stamp
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.tokenizer.corpus import Block, BlockTokenizer
from megatron_aqaa.tokenizer.open import tokenizer_files
from megatron_aqaa.vocabulary import Vocabulary


class ChatAudio:
    """Tokens of distinct audio files under `<output>/audio`: block files, and `audio.bin/.idx` of all of them.

    A block is named by its audio files, their sizes and times, and the tokenizer. Blocks that are there are kept:
    after an interruption, for another data set of the same files, and when records are added behind the others.

    Args:
        paths: each file once.
        tokenizer: tokenizer directory.
        output: folder.
        files_per_block: unit of work, of resuming and of sharing between machines.
        batch_size: recordings encoded at a time.
    """

    def __init__(
        self, paths: Sequence[Path], tokenizer: Path, output: Path, files_per_block: int, batch_size: int
    ) -> None:
        self.paths, self.vocabulary = paths, Vocabulary.load(tokenizer / "vocabulary.yaml")
        self.prefix = output / "audio" / "audio"
        self.tokenizer, self.directory = BlockTokenizer(tokenizer, batch_size), output / "audio" / "blocks"
        parts = [stamp(path) for path in tokenizer_files(tokenizer)] if paths else []
        chosen = (paths[start : start + files_per_block] for start in range(0, len(paths), files_per_block))
        self.blocks = [self._block(some, [parts, batch_size, [stamp(path) for path in some]]) for some in chosen]

    def _block(self, paths: Sequence[Path], made_of: object) -> Block:
        name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]
        return Block(self.directory / f"{name}.npz", tuple(map(str, paths)))

    def tokenize(
        self, shard: int, num_shards: int, num_workers: int, on_progress: Callable[[int], object] = lambda done: None
    ) -> None:
        """Make the missing ones of every `num_shards`-th block from block `shard` on.

        Args:
            shard: from 0.
            num_shards: machines that share the work.
            num_workers: processes; 0 works in the calling one.
            on_progress: called with the number of this shard's files done so far, first at the start.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        for done in self.tokenizer.run(self.blocks[shard::num_shards], num_workers):
            on_progress(done)

    def num_files(self, shard: int, num_shards: int) -> int:
        """Files of a shard."""
        return sum(map(len, self.blocks[shard::num_shards]))

    def open(self) -> AudioTokens:
        """Join the blocks, all of which must be there, unless that was done."""
        if not self.paths:
            return AudioTokens({}, None, {})
        digest = digest_of([block.path.name for block in self.blocks])
        record = finished(self.prefix, digest)
        if record is None:
            rejects = join_blocks(self.blocks, self.prefix, self.vocabulary).rejects
            record = {"documents": len(self.paths), "rejects": {str(line): why for line, why in rejects.items()}}
            finish(self.prefix, digest, record)
        rejects = {int(line): why for line, why in record["rejects"].items()}
        return AudioTokens({path: line for line, path in enumerate(self.paths)}, Documents(self.prefix), rejects)


@dataclass(frozen=True)
class AudioTokens:
    """Tokens by audio file.

    Attributes:
        lines: file → its sequence.
        documents: sequences of all files; None if there are no files.
        rejects: sequence of a file that could not be tokenized → reason.
    """

    lines: dict[Path, int]
    documents: Documents | None
    rejects: dict[int, str]

    def of(self, path: Path) -> NDArray[np.int64]:
        """Token ids [5n] of a file; `ChatError` if it could not be tokenized."""
        line = self.lines[path]
        if line in self.rejects:
            raise ChatError("unreadable audio", self.rejects[line])
        assert self.documents is not None
        return self.documents[line].token_ids
