"""Selected spoken answers for a second supervised stage: of the assistant's recordings, those that are told to be good.

SFT-1 meets every answer in all of its takes. What follows should steady the answer, not vary it, so of the takes of one
answer in one style a single one is kept: it follows its style, and it is the shortest that does. Both are measured, on
recordings of the training split alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_aqaa.audio.io import load_waveform
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import Recording, read_recordings, select
from megatron_aqaa.evaluation.preference_rules import training_takes
from megatron_aqaa.evaluation.sampled_answers import hear, spoken_answer, spoken_question
from megatron_aqaa.evaluation.style import Manner, StyleCheck, measure_manner, median_manner
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.whole_file import write_json, write_whole

Takes = dict[tuple[str, str], list[Recording]]


@dataclass(frozen=True)
class SelectionConfig:
    """What to select from.

    Attributes:
        run: directory with `speech/`, `tokens/` and `tokenizer/`.
        output: chat JSON lines, one conversation each; counts go beside it, to `.counts.json`.
        num_conversations: questions of the training split, drawn without repeats.
        seed: draws them.
    """

    run: Path
    output: Path
    num_conversations: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_conversations < 1:
            raise ValueError(f"num_conversations = {self.num_conversations}: must be at least 1")


def select_answers(config: SelectionConfig, on_progress: Callable[[int], None] = lambda done: None) -> dict[str, int]:
    """Write the conversations.

    Args:
        config: what to select from.
        on_progress: called with the number of recordings measured so far.

    Returns:
        Counts: "recordings" measured, "off_style" among them, "selected" takes, "conversations" written.

    Raises:
        ValueError: inputs are missing, or no take of an answer follows its style.
    """
    recordings = read_recordings(config.run / "speech" / "manifest.jsonl")
    tokens = Documents(config.run / "tokens" / "audio")
    vocabulary = Vocabulary.load(config.run / "tokenizer" / "vocabulary.yaml")
    takes = training_takes(recordings)
    best, counts = best_takes(takes, tokens, on_progress)
    lines = []
    for question in draw(recordings, config.num_conversations, config.seed):
        take = best.get((question.answer, question.style))
        if take is None:
            raise ValueError(f"no take of {question.answer!r} follows the style {question.style}; record it again")
        content = spoken_answer(take.text, tokens[take.line].token_ids, vocabulary)
        asked = spoken_question(hear(question, tokens), vocabulary)
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": content}]
        lines.append(json.dumps({"messages": messages, "meta": {"question": question.id, "answer": take.id}}) + "\n")
    write_whole(config.output, "".join(lines))
    counts = {**counts, "conversations": len(lines)}
    write_json(config.output.with_suffix(".counts.json"), counts)
    return counts


def num_takes(config: SelectionConfig) -> int:
    """Recordings that are measured."""
    return len(select(read_recordings(config.run / "speech" / "manifest.jsonl"), "train", ("assistant",)))


def best_takes(
    takes: Takes, tokens: Documents, on_progress: Callable[[int], None]
) -> tuple[dict[tuple[str, str], Recording], dict[str, int]]:
    """Of every answer in every style the shortest take that follows the style; and the counts."""
    manners: dict[int, Manner] = {}
    for group in takes.values():
        manners.update({take.line: measure_manner(load_waveform(take.audio)) for take in group})
        on_progress(len(manners))
    neutral = {text: group for (text, style), group in takes.items() if style == "neutral"}
    check = StyleCheck({text: median_manner(manners[t.line] for t in group) for text, group in neutral.items()})
    best: dict[tuple[str, str], Recording] = {}
    off_style = 0
    for (text, style), group in takes.items():
        follows = [t for t in group if check.follows_manner(manners[t.line], check.references[text], style)]
        off_style += len(group) - len(follows)
        if follows:
            best[text, style] = min(follows, key=lambda take: int(tokens.lengths[take.line]))
    return best, {"recordings": len(manners), "off_style": off_style, "selected": len(best)}


def draw(recordings: Sequence[Recording], number: int, seed: int) -> list[Recording]:
    """Questions of the training split in random order, at most `number`."""
    questions = [question for question in select(recordings, "train", ("user",)) if question.answer]
    order = np.random.default_rng(seed).permutation(len(questions))[:number]
    return [questions[index] for index in order]
