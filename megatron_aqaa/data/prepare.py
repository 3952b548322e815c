"""From a manifest, its audio tokens and a text model to all data sets of a run.

Data sets lie under `<output>/pretraining/<split>/<task>`, one for each task, so that a run sets the blend, and
`<output>/sft/<split>`, all tasks in one, because they pack better together. Split is "train" or a held-out set. Sets
that are complete are kept (`data/finished.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megatron_aqaa.data.conversations import Example, Instructions, conversation, conversation_examples, mix
from megatron_aqaa.data.counts import DocumentCounts
from megatron_aqaa.data.finished import digest_of, finish, finished, record_of
from megatron_aqaa.data.indexed import Document, Documents, DocumentWriter, remove_documents
from megatron_aqaa.data.manifest import ROLES, Recording, Role, read_recordings, select
from megatron_aqaa.data.pretraining import (
    NEED_TEXT,
    PRETRAINING_TASKS,
    SpeechTokens,
    pretraining_document,
    pretraining_recordings,
)
from megatron_aqaa.tokenizer.chat import ChatTemplate
from megatron_aqaa.tokenizer.huggingface_text import open_text
from megatron_aqaa.vocabulary import AnswerFormat, Vocabulary
from megatron_aqaa.whole_file import write_json


@dataclass(frozen=True)
class PrepareConfig:
    """What to make of what.

    Attributes:
        manifest: `manifest.jsonl` of the recordings.
        audio: Prefix of their tokens, sequence i for line i of the manifest.
        text_model: SentencePiece model, or `tokenizer.json`.
        vocabulary: YAML file of the id layout.
        output: Folder of the data sets.
        pretraining: Task → roles whose recordings it is made of; left out: all tasks, of all recordings. Recordings
            that tell no role belong to every role.
        conversations: SFT task → share of the conversations; empty makes none.
        held_out: Splits beside "train".
        num_takes: At most so many conversations per question, each with another recording of the answer.
        max_tokens: Conversations longer than this are left out and counted; None keeps all.
        instructions: Words for the tasks "asr" and "tts".
        answer_format: Layout of text and audio in an answer.
        seed: Draws the takes.
    """

    manifest: Path
    audio: Path
    text_model: Path
    vocabulary: Path
    output: Path
    pretraining: dict[str, tuple[Role, ...]] = field(default_factory=lambda: dict.fromkeys(PRETRAINING_TASKS, ROLES))
    conversations: dict[str, float] = field(default_factory=dict)
    held_out: tuple[str, ...] = ()
    num_takes: int = 1
    max_tokens: int | None = None
    instructions: Instructions = field(default_factory=Instructions)
    answer_format: AnswerFormat = field(default_factory=AnswerFormat)
    seed: int = 0


@dataclass(frozen=True)
class _DataSet:
    """A data set to be made: its items, and what makes a document of an item.

    Attributes:
        missing: why items are missing, if any are.
        without_text: recordings that are left out because nobody knows what they say.
    """

    name: str
    items: Sequence[Any]
    make: Callable[[Any], Document]
    with_mask: bool
    missing: str = ""
    without_text: int = 0


class Preparation:
    """The data sets that `config` asks for, planned when it is made, written by `run`.

    Attributes:
        num_documents: Documents of all data sets together.
        num_rejected: Recordings that were left out because they could not be tokenized.
        impossible: Data set that was asked for, but has no documents → why.

    Raises:
        ValueError: Inputs that are missing, damaged, or do not belong together; the message names file or record.
    """

    def __init__(self, config: PrepareConfig) -> None:
        self.config = config
        self.data_sets, self.num_rejected = _plan(config)
        self.num_documents = sum(len(data_set.items) for data_set in self.data_sets)
        self.impossible = {data_set.name: data_set.missing for data_set in self.data_sets if not data_set.items}

    def run(self, on_progress: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
        """Write every data set that is not there yet, and `summary.json`.

        Args:
            on_progress: Called with the number of documents made or found.

        Returns:
            `rejected_recordings`, `impossible`: data set without documents → why, and `data_sets`: name → counts.
        """
        done, inputs, data_sets = 0, _digest(self.config), {}
        # read back by inference
        noted = {"answer_format": str(self.config.answer_format)}
        noted |= {name: made for name, made in record_of(self.config.audio).items() if name == "resampler"}
        for data_set in self.data_sets:
            prefix = self.config.output / data_set.name
            counts = finished(prefix, inputs)
            if counts is None:
                written = _write(prefix, data_set, self.config, partial(_report, on_progress, done))
                counts = {**noted, **written, "without_text": data_set.without_text}
                finish(prefix, inputs, counts)
            data_sets[data_set.name] = counts
            if data_set.items:
                done += len(data_set.items)
                on_progress(done)
        summary = {
            "rejected_recordings": self.num_rejected,
            "impossible": self.impossible,
            "data_sets": data_sets,
        }
        write_json(self.config.output / "summary.json", summary)
        return summary


def _report(on_progress: Callable[[int], None], before: int, made: int) -> None:
    on_progress(before + made)


def _plan(config: PrepareConfig) -> tuple[list[_DataSet], int]:
    """Every data set, in the order in which they are made, and the number of rejected recordings."""
    recordings, vocabulary = read_recordings(config.manifest), Vocabulary.load(config.vocabulary)
    text = open_text(config.text_model)
    tokens = SpeechTokens(Documents(config.audio).tokens, text, vocabulary, config.answer_format)
    template = ChatTemplate(text, vocabulary, config.answer_format)
    if len(tokens.audio) != len(recordings):
        raise ValueError(
            f"{config.audio}.idx has {len(tokens.audio)} recordings, {config.manifest} has {len(recordings)}; "
            f"tokenize this manifest again"
        )
    splits = dict.fromkeys(recording.split for recording in recordings)
    for split in ("train", *config.held_out):
        if split not in splits:
            raise ValueError(f"{config.manifest}: no recordings in the split {split!r}; splits: {', '.join(splits)}")
    usable = [recording for recording in recordings if not tokens.is_rejected(recording)]
    data_sets = [
        data_set
        for split in ("train", *config.held_out)
        for data_set in (
            *_pretraining_sets(config, usable, split, tokens),
            *_conversation_sets(config, usable, split, tokens, template),
        )
    ]
    return data_sets, len(recordings) - len(usable)


def _pretraining_sets(
    config: PrepareConfig, recordings: list[Recording], split: str, tokens: SpeechTokens
) -> list[_DataSet]:
    def make(task: str, recording: Recording) -> Document:
        token_ids = np.asarray(pretraining_document(task, recording, tokens))
        return Document(token_ids, np.ones(len(token_ids), np.uint8))

    data_sets = []
    for task, roles in config.pretraining.items():
        chosen = select(recordings, split, roles)
        items = pretraining_recordings(task, chosen)
        missing = f"none of the {len(chosen)} recordings has a text, which {task} needs"
        if not chosen:
            missing = f"no recordings of the split {split!r} and of the roles {', '.join(roles) or '(none)'}"
        without_text = sum(not recording.text for recording in chosen) if task in NEED_TEXT else 0
        name = f"pretraining/{split}/{task}"
        data_sets.append(_DataSet(name, items, partial(make, task), False, missing, without_text))
    return data_sets


def _conversation_sets(
    config: PrepareConfig, recordings: list[Recording], split: str, tokens: SpeechTokens, template: ChatTemplate
) -> list[_DataSet]:
    def make(example: Example) -> Document:
        return Document(*conversation(example, tokens, template, config.instructions))

    num_takes = config.num_takes if split == "train" else 1
    examples = {
        task: conversation_examples(task, recordings, split, num_takes, config.seed) for task in config.conversations
    }
    # a held-out set need not have every task; training without one that is asked for would be a mistake
    shares = {task: share for task, share in config.conversations.items() if examples[task] or split == "train"}
    return [_DataSet(f"sft/{split}", mix(examples, shares, config.seed), make, with_mask=True)] if shares else []


def _write(prefix: Path, data_set: _DataSet, config: PrepareConfig, on_made: Callable[[int], None]) -> dict[str, float]:
    """Write one data set; returns its counts."""
    vocabulary = Vocabulary.load(config.vocabulary)
    counts = DocumentCounts(vocabulary)
    if not data_set.items:
        remove_documents(prefix)  # of earlier settings
        return counts.result()
    with DocumentWriter(prefix, vocabulary, data_set.with_mask) as writer:
        for number, item in enumerate(data_set.items, start=1):
            document = data_set.make(item)
            too_long = data_set.with_mask and len(document.token_ids) > (config.max_tokens or math.inf)
            counts.left_out += too_long
            if not too_long:
                writer.add(document.token_ids, document.loss_mask if data_set.with_mask else None)
                counts.add(document)
            if number % 500 == 0:
                on_made(number)
    return counts.result()


def _digest(config: PrepareConfig) -> str:
    """Changes with the settings and with every input file."""
    settings = {name: value for name, value in asdict(config).items() if name != "output"}
    return digest_of(settings, (config.manifest, Path(f"{config.audio}.idx"), config.text_model, config.vocabulary))
