"""From a speech manifest to audio tokens in Megatron's format: `audio.bin/.idx`, sequence i for line i.

The sequence of a rejected line is a single padding token, so that the others keep their numbers. The work is done in
blocks of lines, by any number of machines in any order; the data set is written by one process, when all are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.data.shard import Shard, parse_shard
from megatron_aqaa.data.token_inputs import claim
from megatron_aqaa.data.token_report import token_report
from megatron_aqaa.tokenizer.corpus import MAX_DURATION_S, Block, BlockTokenizer, chop
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.whole_file import write_whole


@dataclass(frozen=True)
class TokenizeConfig:
    """What to tokenize.

    Attributes:
        manifest: `manifest.jsonl`; every line names its `audio`, relative to the manifest.
        tokenizer: a tokenizer directory.
        output: receives `audio.bin/.idx`, `rejects.jsonl` and `report.json`; `blocks/` is for resuming.
        num_workers: processes; 0 works in the calling process.
        lines_per_block: unit of work, of resuming and of sharing between machines.
        batch_size: recordings encoded at a time.
        max_duration_s: longer recordings are rejected, by their headers.
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
    shard: int | str | None = None
    num_shards: int | None = None
    merge: bool = False

    def __post_init__(self) -> None:
        if min(self.lines_per_block, self.batch_size) < 1 or self.num_workers < 0:
            raise ValueError("lines_per_block and batch_size must be at least 1, num_workers at least 0")
        if not self.max_duration_s > 0:
            raise ValueError(f"max_duration_s = {self.max_duration_s}: must be above 0")
        if self.merge and self.shard is not None:
            raise ValueError("merge writes the data set of all shards; leave shard out")
        parse_shard(self.shard, self.num_shards)

    @property
    def part(self) -> Shard | None:
        """What `shard` and `num_shards` name; None for all."""
        return parse_shard(self.shard, self.num_shards)


class Tokenization:
    """The recordings that `config` names, in blocks.

    Attributes:
        blocks: of the data set, in order.
        mine: those that this process is to see to.

    Raises:
        ValueError: the manifest or the tokenizer cannot be read, or `output` holds tokens of other inputs.
    """

    def __init__(self, config: TokenizeConfig) -> None:
        self.config, directory = config, config.output / "blocks"
        self.blocks = chop(audio_paths(config.manifest), directory, config.lines_per_block)
        self.mine = self.blocks if config.part is None else self.blocks[config.part.index :: config.part.count]
        results = {name: getattr(config, name) for name in ("lines_per_block", "batch_size", "max_duration_s")}
        claim(directory / "inputs.json", [config.manifest], config.tokenizer, results)

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
        rejects = join_blocks(self.blocks, config.output / "audio", vocabulary)
        audio = {line: name for line, name in enumerate(n for b in self.blocks for n in b.audio) if line in rejects}
        records = ({"line": line + 1, "audio": audio[line], "reason": rejects[line]} for line in rejects)
        write_whole(config.output / "rejects.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        report = token_report(config.output / "audio", config.manifest, vocabulary)
        write_whole(config.output / "report.json", json.dumps({**report, "rejected": len(rejects)}))
        return len(rejects)

    def _check_complete(self) -> None:
        missing = [number for number, block in enumerate(self.blocks) if not block.is_done()]
        if not missing:
            return
        found = f"{self.config.output}: {len(missing)} of {len(self.blocks)} blocks are not there"
        count = self.config.num_shards
        if count is None:
            names = ", ".join(self.blocks[number].path.name for number in missing[:_SHOWN])
            more = ", …" if len(missing) > _SHOWN else ""
            raise ValueError(f"{found} ({names}{more}); with num_shards=… it is told which shards they belong to")
        shards = sorted({number % count for number in missing})
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
        work.tokenize(on_progress)
    return work.merge() if config.part is None else 0


def audio_paths(manifest: Path) -> list[str]:
    """The recording of each line.

    Raises:
        ValueError: no such manifest, no lines, or a line without `audio`; the message names it.
    """
    if not manifest.is_file():
        raise ValueError(f"{manifest}: no such manifest; the speech stage writes it")
    paths = []
    for number, line in enumerate(manifest.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), start=1):
        try:
            paths.append(str(manifest.parent / json.loads(line)["audio"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{manifest}:{number}: not a record with a key 'audio' ({error!r})") from None
    if not paths:
        raise ValueError(f"{manifest}: no records; run the speech stage again")
    return paths


def join_blocks(blocks: Sequence[Block], prefix: Path, vocabulary: Vocabulary) -> dict[int, str]:
    """Write the tokens of all blocks as one data set, a single `pad` for a rejected line.

    Returns:
        Rejected line, from 0 → reason.
    """
    rejects: dict[int, str] = {}
    first = 0
    with DocumentWriter(prefix, vocabulary) as writer:
        for block in blocks:
            tokens = block.read()
            for token_ids in tokens.token_ids:
                writer.add(token_ids if len(token_ids) else [vocabulary.pad])
            rejects |= {first + line: reason for line, reason in tokens.rejects.items()}
            first += len(block)
    return rejects
