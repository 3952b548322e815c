"""From chat and preference JSON Lines to data sets: SFT conversations, and pairs for preference optimization.

Data sets lie under `<output>/sft/<name>` and `<output>/preference/<name>`. In a preference data set, documents 2i and
2i + 1 are the chosen and the rejected answer to the same prompt, which both hold whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from megatron_aqaa.audio.io import RESAMPLER
from megatron_aqaa.data.audio_files import AudioFiles
from megatron_aqaa.data.chat_audio import AudioTokens, ChatAudio
from megatron_aqaa.data.chat_counts import ChatCounts
from megatron_aqaa.data.chat_documents import ChatEncoder, History
from megatron_aqaa.data.chat_parser import ChatError
from megatron_aqaa.data.chat_records import BadRecord, ChatReader, Kind, Record
from megatron_aqaa.data.finished import digest_of, finish, finished
from megatron_aqaa.data.indexed import Document, DocumentWriter
from megatron_aqaa.tokenizer.chat import ChatTemplate
from megatron_aqaa.tokenizer.huggingface_text import open_text, text_file
from megatron_aqaa.tokenizer.open import tokenizer_files
from megatron_aqaa.vocabulary import AnswerFormat, Vocabulary
from megatron_aqaa.whole_file import write_json

_SHOWN_FAULTS = 5


@dataclass(frozen=True)
class PrepareChatConfig:
    """What to make of which files.

    Attributes:
        tokenizer: Folder with `text.model` or `tokenizer.json`, and `vocabulary.yaml`; or an imported run. Where
            records name audio files, the whole tokenizer.
        output: Folder of the data sets and of the audio tokens.
        sft: Name of a data set → its chat files.
        preference: Name of a data set → its preference files.
        loss_on: Answers of a conversation that carry loss: the "last" one or "all".
        history: Earlier speech of user and assistant, where its words are known: as "text" or as "audio".
        spoken_answers: Reject records whose answer has no speech.
        max_tokens: Conversations, and pairs of which one half is, longer than this are left out and counted.
        answer_format: Layout of text and audio in an answer.
        strict: Refuse to begin while any record is bad, instead of setting bad ones aside.
        max_rejected_ratio: Above this share of rejected records the command ends with 1 instead of 65, so that a job
            that waits for it is not started.
        shard: Tokenize only this part of the audio, from 0, and write no data set; None does all that is left to do.
        num_shards: Parts, one for each machine or task of a job array.
        num_workers: Processes that tokenize; 0 works in the calling one.
        files_per_block: Audio files in a unit of work.
        batch_size: Recordings encoded at a time.
    """

    tokenizer: Path
    output: Path
    sft: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    preference: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    loss_on: Literal["last", "all"] = "last"
    history: History = "text"
    spoken_answers: bool = False
    max_tokens: int | None = None
    answer_format: AnswerFormat = field(default_factory=AnswerFormat)
    strict: bool = False
    max_rejected_ratio: float = 0.1
    shard: int | None = None
    num_shards: int = 1
    num_workers: int = 2
    files_per_block: int = 256
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not (self.sft or self.preference):
            raise ValueError("name at least one data set: `sft: {train: [chat.jsonl]}` or `preference: …`")
        if self.loss_on == "all" and self.history == "text":
            raise ValueError("loss_on: all needs history: audio, since an answer with loss keeps its speech")
        if self.loss_on == "all" and not self.sft:
            raise ValueError("loss_on has no effect on preference pairs; take it out")
        if min(self.num_shards, self.files_per_block, self.batch_size) < 1 or self.num_workers < 0:
            raise ValueError("num_shards, files_per_block and batch_size must be at least 1, num_workers at least 0")
        if not 0 <= self.max_rejected_ratio <= 1:
            raise ValueError(f"max_rejected_ratio = {self.max_rejected_ratio}: must lie in 0 … 1")
        if self.shard is not None and not 0 <= self.shard < self.num_shards:
            raise ValueError(f"shard = {self.shard}: must lie in 0 … {self.num_shards - 1}, one below num_shards")

    @property
    def files(self) -> list[Path]:
        """All chat and preference files, in the order in which they are read."""
        return [path for files in (*self.sft.values(), *self.preference.values()) for path in files]


@dataclass(frozen=True)
class _DataSet:
    """A data set to be made."""

    kind: Kind
    name: str
    files: tuple[Path, ...]

    @property
    def path(self) -> str:
        """Where it lies under the output folder."""
        return f"{self.kind}/{self.name}"


class ChatPreparation:
    """The data sets that `config` asks for: all records are read when it is made, and written by `write`.

    Args:
        config: What to make.
        on_progress: Called with the number of records read.

    Attributes:
        num_records: Lines of all data sets together.
        num_audio: Audio files that this process tokenizes, or finds tokenized.

    Raises:
        ValueError: A file is missing, there are no audio encoders for the audio files that records name, or, with
            `strict`, a record is bad; the message names it.
    """

    def __init__(self, config: PrepareChatConfig, on_progress: Callable[[int], object] = lambda done: None) -> None:
        self.config, self.vocabulary = config, Vocabulary.load(config.tokenizer / "vocabulary.yaml")
        text = open_text(config.tokenizer)
        self.encoder = ChatEncoder(
            ChatTemplate(text, self.vocabulary, config.answer_format), config.loss_on, config.history
        )
        self.data_sets = [_DataSet("sft", *item) for item in config.sft.items()]
        self.data_sets += [_DataSet("preference", *item) for item in config.preference.items()]
        self.audio_files = AudioFiles()
        self.num_records, self.bad = 0, list[BadRecord]()
        self.audio_of = {data_set.path: self._scan(data_set, on_progress) for data_set in self.data_sets}
        self._refuse_bad(self.bad)
        distinct = dict.fromkeys(path for paths in self.audio_of.values() for path in paths)
        sizes = config.files_per_block, config.batch_size
        self.audio = ChatAudio(list(distinct), config.tokenizer, config.output, *sizes)
        self.part = (0, 1) if config.shard is None else (config.shard, config.num_shards)
        self.num_audio = self.audio.num_files(*self.part)

    def tokenize(self, on_progress: Callable[[int], object] = lambda done: None) -> None:
        """Tokenize the audio files of this shard, or all that are left, and call `on_progress` with those done."""
        self.audio.tokenize(*self.part, self.config.num_workers, on_progress)

    def write(self, on_progress: Callable[[int], object] = lambda done: None) -> dict[str, Any]:
        """Write every data set that is not there yet, and `summary.json`; all audio must be tokenized.

        Args:
            on_progress: Called with the number of records written or found.

        Returns:
            `data_sets`: name → counts; `rejected`: bad records of all of them.

        Raises:
            ValueError: No record of a data set can be used, or, with `strict`, one has no place in the layout or an
                audio file that cannot be tokenized.
        """
        audio, done, data_sets = self.audio.open(), 0, dict[str, Any]()
        for data_set in self.data_sets:
            prefix, inputs = self.config.output / data_set.path, self._digest(data_set)
            counts = finished(prefix, inputs)
            if counts is None:
                counts = self._write(data_set, audio, partial(_report, on_progress, done))
                finish(prefix, inputs, counts)
            data_sets[data_set.path] = counts
            done += counts["records"]
            on_progress(done)
        summary = {"rejected": sum(counts["rejected"] for counts in data_sets.values()), "data_sets": data_sets}
        write_json(self.config.output / "summary.json", summary)
        return summary

    def _scan(self, data_set: _DataSet, on_progress: Callable[[int], object]) -> dict[Path, None]:
        """Audio files that a data set needs; bad records are counted on the way."""
        paths: dict[Path, None] = {}
        for record in self._records(data_set):
            self.num_records += 1
            if isinstance(record, BadRecord):
                self.bad.append(record)
            else:
                paths.update(dict.fromkeys(self.encoder.audio_paths(record)))
            if self.num_records % 500 == 0:
                on_progress(self.num_records)
        on_progress(self.num_records)
        return paths

    def _records(self, data_set: _DataSet) -> Iterator[Record | BadRecord]:
        reader = ChatReader(data_set.kind, self.vocabulary, self.config.spoken_answers, self.audio_files)
        for path in data_set.files:
            yield from reader.read(path)

    def _refuse_bad(self, faults: list[BadRecord]) -> None:
        if self.config.strict and faults:
            shown = "\n".join(f"  {fault}" for fault in faults[:_SHOWN_FAULTS])
            raise ValueError(f"strict: {len(faults)} bad records, tools/check_chat.py shows all; the first:\n{shown}")

    def _digest(self, data_set: _DataSet) -> str:
        """Changes with the settings and with every input file of a data set."""
        settings, tokenizer = asdict(self.config), self.config.tokenizer
        names = ("loss_on", "history", "spoken_answers", "max_tokens", "answer_format", "strict")
        audio = list(self.audio_of[data_set.path])
        files = [*data_set.files, text_file(tokenizer), tokenizer / "vocabulary.yaml", *audio]
        parts = tokenizer_files(tokenizer) if audio else []
        return digest_of([data_set.kind, *(settings[name] for name in names)], [*files, *parts])

    def _write(self, data_set: _DataSet, audio: AudioTokens, on_made: Callable[[int], None]) -> dict[str, Any]:
        """Write one data set and its rejects; returns its counts."""
        prefix, counts = self.config.output / data_set.path, ChatCounts(self.vocabulary)
        with DocumentWriter(prefix, self.vocabulary, with_mask=True) as writer:
            for number, record in enumerate(self._records(data_set), start=1):
                for document in self._documents(record, audio, counts):
                    writer.add(document.token_ids, document.loss_mask)
                if number % 500 == 0:
                    on_made(number)
            rejects = Path(f"{prefix}_rejects.jsonl")
            rejects.write_text(counts.reject_lines())
            self._refuse_bad(counts.rejects)
            if not writer.num_documents:
                found = f"{len(counts.rejects)} are bad (see {rejects}), {counts.left_out} longer than max_tokens"
                raise ValueError(f"{data_set.path}: of {counts.result()['records']} records none can be used: {found}")
        noted = {"kind": data_set.kind, "answer_format": str(self.config.answer_format)}
        if self.audio_of[data_set.path]:
            noted["resampler"] = RESAMPLER
        return {**noted, **counts.result()}

    def _documents(self, record: Record | BadRecord, audio: AudioTokens, counts: ChatCounts) -> list[Document]:
        """Documents of a record, which is counted; none if it is bad or too long."""
        if isinstance(record, BadRecord):
            counts.rejects.append(record)
            return []
        try:
            documents = self.encoder.encode(record, audio.of)
        except ValueError as error:
            problem = error.problem if isinstance(error, ChatError) else "no place in the template"
            counts.rejects.append(BadRecord(record.file, record.line, str(error), problem))
            return []
        if max(len(document.token_ids) for document in documents) > (self.config.max_tokens or math.inf):
            counts.left_out += 1
            return []
        counts.keep(documents)
        return documents


def _report(on_progress: Callable[[int], object], before: int, made: int) -> None:
    on_progress(before + made)
