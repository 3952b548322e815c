"""From a speech manifest to audio tokens in Megatron's format: `audio.bin/.idx`, sequence i for line i.

The sequence of a rejected line is a single padding token, so that the others keep their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.data.token_report import token_report
from megatron_aqaa.tokenizer.corpus import MAX_DURATION_S, BlockTokenizer
from megatron_aqaa.tokenizer.open import tokenizer_files
from megatron_aqaa.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenizeConfig:
    """What to tokenize.

    Attributes:
        manifest: `manifest.jsonl`; every line names its `audio`, relative to the manifest.
        tokenizer: a tokenizer directory.
        output: receives `audio.bin/.idx`, `rejects.jsonl` and `report.json`; `blocks/` is for resuming.
        num_workers: processes; 0 works in the calling process.
        lines_per_block: unit of work and of resuming.
        batch_size: recordings encoded at a time.
        max_duration_s: longer recordings are rejected, by their headers.
    """

    manifest: Path
    tokenizer: Path
    output: Path
    num_workers: int = 2
    lines_per_block: int = 256
    batch_size: int = 32
    max_duration_s: float = MAX_DURATION_S


def tokenize_manifest(config: TokenizeConfig, on_progress: Callable[[int], object] = lambda done: None) -> int:
    """Tokenize all lines that are not yet done, then write the data set.

    Args:
        config: inputs and outputs.
        on_progress: called with the number of lines done so far, first at the start.

    Returns:
        The number of rejected lines.

    Raises:
        ValueError: the manifest or the tokenizer cannot be read, or `output` holds tokens of other inputs.
    """
    audio, directory = audio_paths(config.manifest), config.output / "blocks"
    _claim(config, directory / "inputs.json")
    blocks = BlockTokenizer(
        config.tokenizer, audio, directory, config.lines_per_block, config.batch_size, config.max_duration_s
    )
    for done in blocks.run(config.num_workers):
        on_progress(done)
    return _publish(config, blocks)


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


def join_blocks(blocks: BlockTokenizer, prefix: Path, vocabulary: Vocabulary) -> dict[int, str]:
    """Write the tokens of all blocks as one data set, a single `pad` for a rejected line.

    Returns:
        Rejected line, from 0 → reason.
    """
    rejects: dict[int, str] = {}
    with DocumentWriter(prefix, vocabulary) as writer:
        for lines in blocks.blocks():
            block = blocks.read(lines)
            for token_ids in block.token_ids:
                writer.add(token_ids if len(token_ids) else [vocabulary.pad])
            rejects |= {lines[i]: reason for i, reason in block.rejects.items()}
    return rejects


def _claim(config: TokenizeConfig, note: Path) -> None:
    """Note in the output directory which inputs its blocks belong to, or check the note."""
    files = [config.manifest, *tokenizer_files(config.tokenizer)]
    stats = [path.stat() for path in files]
    inputs = {"lines_per_block": config.lines_per_block, "files": [[s.st_size, s.st_mtime_ns] for s in stats]}
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(inputs))
    elif json.loads(note.read_text()) != inputs:
        raise ValueError(f"{config.output}: holds tokens of another manifest or tokenizer; delete it or name another")


def _publish(config: TokenizeConfig, blocks: BlockTokenizer) -> int:
    """Join the blocks into the data set and report on it; returns the number of rejected lines."""
    vocabulary = Vocabulary.load(config.tokenizer / "vocabulary.yaml")
    rejects = join_blocks(blocks, config.output / "audio", vocabulary)
    records = ({"line": line + 1, "audio": blocks.audio[line], "reason": rejects[line]} for line in rejects)
    (config.output / "rejects.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    report = token_report(config.output / "audio", config.manifest, vocabulary)
    (config.output / "report.json").write_text(json.dumps({**report, "rejected": len(rejects)}))
    return len(rejects)
