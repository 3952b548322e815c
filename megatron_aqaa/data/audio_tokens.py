"""From a speech manifest to audio tokens in Megatron's format: `audio.bin/.idx`, sequence i for line i.

The sequence of a rejected line is a single padding token, so that the others keep their numbers. The work is done in
blocks of lines, by any number of machines in any order; the data set is written by one process, when all are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from megatron_aqaa.data.finished import digest_of, finish
from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.data.shard import Shard, parse_shard
from megatron_aqaa.data.speech_sources import open_source
from megatron_aqaa.data.token_inputs import claim
from megatron_aqaa.data.token_report import token_report
from megatron_aqaa.data.token_summary import write_summary
from megatron_aqaa.tokenizer.corpus import MAX_DURATION_S, Block, BlockTokenizer
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.whole_file import write_whole


@dataclass(frozen=True)
class TokenizeConfig:
    """What to tokenize.

    Attributes:
        manifest: `manifest.jsonl`; every line names its `audio`, relative to the manifest. Or WebDataset tars: a folder
            of them, one of them, `train-*.tar`, `train-{000..031}.tar`.
        tokenizer: a tokenizer directory.
        output: receives `audio.bin/.idx/.json`, `rejects.jsonl`, `report.json`, `summary.json` and `.html`, for
            tars `manifest.jsonl` too; `blocks/` is for resuming.
        num_workers: processes; 0 works in the calling process.
        lines_per_block: unit of work, of resuming and of sharing between machines.
        batch_size: recordings encoded at a time.
        max_duration_s: longer recordings are rejected, by their headers.
        require_text: recordings without `text` are rejected.
        max_rejected_ratio: above this share of rejected recordings the command ends with 1 instead of 65, so that a job
            that waits for it is not started.
        shard: tokenize only this part and write no data set: a number from 0, `3/16`, or `array` for the number of the
            SLURM array task; None does all that is left to do.
        num_shards: parts, one for each machine or task of a job array.
        merge: write the data set of what the shards have made, and tokenize nothing.
    """

    manifest: Path
    tokenizer: Path
    output: Path
    num_workers: int = 2
    lines_per_block: int = 256
    batch_size: int = 32
    max_duration_s: float = MAX_DURATION_S
    require_text: bool = False
    max_rejected_ratio: float = 0.1
    shard: int | str | None = None
    num_shards: int | None = None
    merge: bool = False

    def __post_init__(self) -> None:
        if min(self.lines_per_block, self.batch_size) < 1 or self.num_workers < 0:
            raise ValueError("lines_per_block and batch_size must be at least 1, num_workers at least 0")
        if not self.max_duration_s > 0:
            raise ValueError(f"max_duration_s = {self.max_duration_s}: must be above 0")
        if not 0 <= self.max_rejected_ratio <= 1:
            raise ValueError(f"max_rejected_ratio = {self.max_rejected_ratio}: must lie in 0 … 1")
        if self.merge and self.shard is not None:
            raise ValueError("merge writes the data set of all shards; leave shard out")
        parse_shard(self.shard, self.num_shards)

    @property
    def part(self) -> Shard | None:
        """What `shard` and `num_shards` name; None for all."""
        return parse_shard(self.shard, self.num_shards)


class Tokenization:
    """The recordings that `config` names, in blocks.

    Raises:
        ValueError: the manifest or the tokenizer cannot be read, or `output` holds tokens of other inputs.
    """

    def __init__(self, config: TokenizeConfig) -> None:
        self.config, directory = config, config.output / "blocks"
        self.source = open_source(config.manifest, directory, config.lines_per_block, config.require_text)
        names = ("lines_per_block", "batch_size", "max_duration_s", "require_text")
        settings = {name: getattr(config, name) for name in names}
        claim(directory / "inputs.json", self.source.files, config.tokenizer, settings)

    @property
    def units(self) -> range:
        """Units of the source that this process is to see to."""
        part = self.config.part or Shard(0, 1)
        return range(part.index, self.source.num_units, part.count)

    def prepare(self, on_progress: Callable[[int], object] = lambda done: None) -> None:
        """Look through the tars, if the recordings lie in some; calls `on_progress` with the number of units done."""
        for done in self.source.prepare(self.units, self.config.num_workers):
            on_progress(done)

    @cached_property
    def mine(self) -> list[Block]:
        """Blocks that this process is to see to, once it has prepared them."""
        return [block for unit in self.units for block in self.source.blocks(unit)]

    @property
    def num_recordings(self) -> int:
        """Of this process."""
        return sum(map(len, self.mine))

    def tokenize(self, on_progress: Callable[[int], object] = lambda done: None) -> None:
        """Make the blocks that are not there.

        Args:
            on_progress: called with the number of recordings done so far, first at the start.
        """
        tokenizer = BlockTokenizer(self.config.tokenizer, self.config.batch_size, self.config.max_duration_s)
        for done in tokenizer.run(self.mine, self.config.num_workers):
            on_progress(done)

    def merge(self) -> int:
        """Join the blocks into the data set and report on it; returns the number of rejected lines.

        Raises:
            ValueError: blocks are missing; names their shards.
        """
        self._check_complete()
        config, vocabulary = self.config, Vocabulary.load(self.config.tokenizer / "vocabulary.yaml")
        blocks = [block for unit in range(self.source.num_units) for block in self.source.blocks(unit)]
        rejects, took_s = join_blocks(blocks, config.output / "audio", vocabulary)
        names = (str(audio) for block in blocks for audio in block.audio)
        audio = {line: name for line, name in enumerate(names) if line in rejects}
        records = [{"line": line + 1, "audio": audio[line], "reason": rejects[line]} for line in rejects]
        write_whole(config.output / "rejects.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        report = token_report(config.output / "audio", self.source.manifest(config.output), vocabulary)
        noted = json.loads((config.output / "blocks/inputs.json").read_text())
        write_summary(config.output, report, records, took_s, noted["resampler"])
        num_documents = sum(map(len, blocks))
        record = {"documents": num_documents, "rejected": len(rejects), "resampler": noted["resampler"]}
        finish(config.output / "audio", digest_of(noted), record)
        return len(rejects)

    def _check_complete(self) -> None:
        num_units, count = self.source.num_units, self.config.num_shards
        missing = [unit for unit in range(num_units) if not self.source.is_done(unit)]
        if not missing:
            return
        found = f"{self.config.output}: {len(missing)} of {num_units} {self.source.unit_name} are not tokenized"
        if count is None:
            shown = ", ".join(map(str, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
            raise ValueError(f"{found} (numbers {shown}); with num_shards=… it is told which shards they belong to")
        shards = sorted({unit % count for unit in missing})
        raise ValueError(
            f"{found}, of shards {', '.join(map(str, shards))} of {count}: run those again (shard={shards[0]}/{count}) "
            f"and wait for them, or leave merge out to tokenize here what is missing"
        )


_SHOWN = 5


def tokenize_manifest(config: TokenizeConfig, on_progress: Callable[[int], object] = lambda done: None) -> int:
    """Tokenize all recordings that are not yet done, or those of a shard; then, if it is no shard, write the data set.

    Args:
        config: inputs and outputs.
        on_progress: called with the number of recordings done so far, first at the start.

    Returns:
        The number of rejected lines; 0 for a shard, whose rejects are counted when the data set is written.

    Raises:
        ValueError: the manifest or the tokenizer cannot be read, or `output` holds tokens of other inputs.
    """
    work = Tokenization(config)
    if not config.merge:
        work.prepare()
        work.tokenize(on_progress)
    return work.merge() if config.part is None else 0


class Joined(NamedTuple):
    """What is to be told of joined blocks.

    Attributes:
        rejects: rejected line, from 0 → reason.
        took_s: processor time of all blocks.
    """

    rejects: dict[int, str]
    took_s: float


def join_blocks(blocks: Sequence[Block], prefix: Path, vocabulary: Vocabulary) -> Joined:
    """Write the tokens of all blocks as one data set, a single `pad` for a rejected line."""
    rejects: dict[int, str] = {}
    first, took_s = 0, 0.0
    with DocumentWriter(prefix, vocabulary) as writer:
        for block in blocks:
            tokens = block.read()
            for token_ids in tokens.token_ids:
                writer.add(token_ids if len(token_ids) else [vocabulary.pad])
            rejects |= {first + line: reason for line, reason in tokens.rejects.items()}
            first += len(block)
            took_s += tokens.took_s
    return Joined(rejects, took_s)
