"""Preference pairs of many questions, in blocks, by several processes, so that an interrupted run continues."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.store import require_checkpoint
from megatron_aqaa.data.manifest import Recording, read_recordings, select
from megatron_aqaa.evaluation.preference_pairs import PairMaker, PairsConfig
from megatron_aqaa.inference.answerer import SpokenAnswerer
from megatron_aqaa.tokenizer.workers import map_blocks
from megatron_aqaa.whole_file import write_json, write_whole


def make_pairs(config: PairsConfig, on_progress: Callable[[int], None] = lambda done: None) -> dict[str, int]:
    """Write `config.output` and its counts; blocks of questions that are there already are kept.

    Args:
        config: what to make.
        on_progress: called with the number of questions done so far, first at the start.

    Returns:
        The counts of `PairMaker.make` over all questions.

    Raises:
        ValueError: inputs are missing, or there was not one pair.
    """
    blocks = _blocks(config)
    missing = [block for block in blocks if not block.path.exists()]
    done = sum(len(block.lines) for block in blocks) - sum(len(block.lines) for block in missing)
    on_progress(done)
    try:
        for count in map_blocks(_Block.make, missing, config.num_workers):
            done += count
            on_progress(done)
    finally:
        _maker.cache_clear()
        platform.shutdown()  # of the calling process, where it worked itself
    made = [json.loads(block.path.read_text()) for block in blocks]
    counts = sum((Counter(block["counts"]) for block in made), Counter[str]())
    pairs = [pair for block in made for pair in block["pairs"]]
    if not pairs:
        raise ValueError(
            f"no pair among {num_questions(config)} questions: raise temperature, num_answers or revoicing"
        )
    write_whole(config.output, "".join(json.dumps(pair) + "\n" for pair in pairs))
    write_json(config.output.with_suffix(".counts.json"), counts)
    return dict(counts)


def num_questions(config: PairsConfig) -> int:
    """Questions of all splits together."""
    return len(_questions(config))


@lru_cache(maxsize=1)  # every block asks
def _questions(config: PairsConfig) -> list[Recording]:
    recordings = read_recordings(config.run / "speech" / "manifest.jsonl")
    questions = []
    for split in config.splits:
        asked = [recording for recording in select(recordings, split, ("user",)) if recording.answer]
        if not asked:
            raise ValueError(f"{config.run / 'speech' / 'manifest.jsonl'}: no questions in the split {split!r}")
        questions += asked[: config.num_questions]
    return questions


@dataclass(frozen=True)
class _Block:
    """Some consecutive questions: the unit of work, and of resuming."""

    config: PairsConfig
    digest: str
    lines: range

    @property
    def path(self) -> Path:
        return self.config.output.with_suffix(".blocks") / f"{self.lines.start:08d}-{self.digest}.json"

    def make(self) -> int:
        """Write the block's pairs; returns the number of questions."""
        maker = _maker(self.config)
        pairs, counts = maker.make(_questions(self.config)[self.lines.start : self.lines.stop])
        write_whole(self.path, json.dumps({"pairs": pairs, "counts": counts}))
        return len(self.lines)


def _blocks(config: PairsConfig) -> list[_Block]:
    count, size, digest = num_questions(config), config.questions_per_block, _digest(config)
    return [_Block(config, digest, range(start, min(start + size, count))) for start in range(0, count, size)]


def _digest(config: PairsConfig) -> str:
    """Changes with every setting and input that may change a pair."""
    checkpoint = require_checkpoint(config.model)
    files = [
        config.run / "speech" / "manifest.jsonl",
        config.run / "tokens" / "audio.idx",
        config.run / "vocoder" / "acoustic" / "model.pt",
        config.run / "vocoder" / "generator" / "model.pt",
        *sorted(checkpoint.iterdir()),
    ]
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("output", "num_workers")}
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
    return hashlib.sha256(json.dumps([settings, stamps], default=str, sort_keys=True).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def _maker(config: PairsConfig) -> PairMaker:
    """One model for each process, for all of its blocks."""
    if config.num_workers:
        torch.set_num_threads(1)
    answerer = SpokenAnswerer.load(config.run, config.model)
    # rules measure pitch and length, which the flow does not touch
    answerer.vocoder.sampling = dataclasses.replace(answerer.vocoder.sampling, steps=0)
    return PairMaker(answerer, config)
