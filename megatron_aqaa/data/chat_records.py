"""Chat and preference JSON Lines, read line by line: a typed record, or what is wrong with the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_aqaa.data.audio_files import AudioFiles
from megatron_aqaa.data.chat_messages import Message
from megatron_aqaa.data.chat_parser import ChatError, MessageParser, check_type, nearest, shown
from megatron_aqaa.vocabulary import Vocabulary

Kind = Literal["sft", "preference"]
_KEYS: dict[Kind, tuple[str, ...]] = {"sft": ("messages",), "preference": ("prompt", "chosen", "rejected")}
_NAMES: dict[Kind, str] = {"sft": "a conversation", "preference": "a preference pair"}


@dataclass(frozen=True)
class ChatRecord:
    """A conversation that ends with the assistant's answer.

    Attributes:
        file: where it stands.
        line: line of the file, from 1.
        messages: in order.
    """

    file: Path
    line: int
    messages: tuple[Message, ...]

    @property
    def answers(self) -> tuple[Message, ...]:
        """The last message."""
        return self.messages[-1:]


@dataclass(frozen=True)
class PreferenceRecord:
    """A question and two answers to it.

    Attributes:
        file: where it stands.
        line: line of the file, from 1.
        prompt: messages up to the question.
        chosen: the better answer.
        rejected: the worse answer.
    """

    file: Path
    line: int
    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message

    @property
    def answers(self) -> tuple[Message, ...]:
        """Both answers, the better one first."""
        return self.chosen, self.rejected

    @property
    def same_words(self) -> bool:
        """True if the answers differ in nothing but their speech: a loss on the text alone learns nothing from them."""
        return self.chosen.words.split() == self.rejected.words.split()


@dataclass(frozen=True)
class BadRecord:
    """A line that cannot be used.

    Attributes:
        file: where it stands.
        line: line of the file, from 1.
        reason: what was found where in the record, and what would be right.
        problem: kind of fault in two or three words, for counting.
    """

    file: Path
    line: int
    reason: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


Record = ChatRecord | PreferenceRecord


@dataclass(frozen=True)
class ChatReader:
    """Reads chat and preference files.

    Attributes:
        kind: what every line has to be; None takes what the first usable line of a file is.
        vocabulary: sizes of the codebooks.
        spoken_answers: the last message, or both halves of a pair, must hold speech.
        audio_files: looks at the audio files that records name.
    """

    kind: Kind | None = None
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    spoken_answers: bool = False
    audio_files: AudioFiles = field(default_factory=AudioFiles)

    def read(self, path: str | Path) -> Iterator[Record | BadRecord]:
        """Every line of a file; one that is empty gives a `BadRecord` for line 1.

        Raises:
            ValueError: there is no such file.
        """
        return self._lines(_existing(path))

    def _lines(self, path: Path) -> Iterator[Record | BadRecord]:
        kind, line = self.kind, 0
        parser = MessageParser(path.parent, self.vocabulary, self.audio_files.check)
        # bytes: a text reader would also break lines at U+2028, which JSON allows inside a string
        with path.open("rb") as file:
            for line, content in enumerate(file, start=1):
                try:
                    record = self._record(_parsed(content), kind, parser, (path, line))
                except ChatError as error:
                    yield BadRecord(path, line, str(error), error.problem)
                else:
                    kind = kind or ("sft" if isinstance(record, ChatRecord) else "preference")
                    yield record
        if not line:
            yield BadRecord(path, 1, "the file is empty; write a record, or take the file out", "empty file")

    def _record(self, raw: dict[str, Any], kind: Kind | None, parser: MessageParser, place: tuple[Path, int]) -> Record:
        found = _kind(raw)
        if kind not in (None, found):
            raise ChatError("wrong kind", f"is {_NAMES[found]} where {_NAMES[kind]} is expected")
        for key in _KEYS[found]:
            if key not in raw:
                raise ChatError("missing key", f"no key {key!r}, found {', '.join(raw)}")
        record: Record = _chat(raw, parser, place) if found == "sft" else _preference(raw, parser, place)
        if self.spoken_answers and not all(answer.audio for answer in record.answers):
            raise ChatError("answer without audio", "the answer has no audio; every answer is to be spoken here")
        return record


def count_records(path: str | Path) -> int:
    """How many records, bad ones included, `ChatReader.read` will find; for progress."""
    with _existing(path).open("rb") as file:
        return max(1, sum(1 for _ in file))


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    return Path(path)


def _parsed(content: bytes) -> dict[str, Any]:
    if not content.strip():
        raise ChatError("not JSON", "is an empty line; take it out")
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are not UTF-8
        raise ChatError("not JSON", f"not a JSON record ({error}); is the line cut off?") from None
    check_type(raw, dict, "record", "an object")
    return dict(raw)


def _kind(raw: dict[str, Any]) -> Kind:
    """Other keys than these are the writer's own; they are not read."""
    if "messages" in raw:
        return "sft"
    if any(key in raw for key in _KEYS["preference"]):
        return "preference"
    known = [key for keys in _KEYS.values() for key in keys]
    hints = "; ".join(f"{key}: {nearest(key, known)}" for key in raw) or "found no keys"
    raise ChatError("missing key", f"neither 'messages' nor 'prompt', 'chosen', 'rejected'; {hints}")


def _chat(raw: dict[str, Any], parser: MessageParser, place: tuple[Path, int]) -> ChatRecord:
    messages = parser.messages(raw["messages"], "messages")
    if not messages or messages[-1].role != "assistant":
        found = f"the last message is the {messages[-1].role}'s" if messages else "there are no messages"
        raise ChatError("no final answer", f"messages: {found}; a conversation ends with the assistant's answer")
    return ChatRecord(*place, messages)


def _preference(raw: dict[str, Any], parser: MessageParser, place: tuple[Path, int]) -> PreferenceRecord:
    prompt = parser.messages(raw["prompt"], "prompt")
    if not prompt or prompt[-1].role == "assistant":
        found = "ends with the assistant's message" if prompt else "has no messages"
        raise ChatError("no question", f"prompt: {found}; it ends with what the answers reply to")
    chosen, rejected = (parser.answer(raw[half], half) for half in ("chosen", "rejected"))
    if chosen.parts == rejected.parts:
        raise ChatError("identical halves", f"chosen and rejected are the same: {shown(chosen.words)}")
    return PreferenceRecord(*place, prompt, chosen, rejected)
