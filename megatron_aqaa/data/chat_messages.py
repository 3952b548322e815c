"""Messages of a conversation: who says what, as written text, and as speech in a file or in codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class TextPart:
    """Written words."""

    text: str


@dataclass(frozen=True)
class AudioPart:
    """Speech: a file, or its codes.

    Attributes:
        path: the file; None where there are codes.
        codes: over both codebooks, linguistic first, in groups `[L L S S S]`; none where there is a file.
        transcript: its words, where they are known. Those of an assistant are the text part before it.
    """

    path: Path | None = None
    codes: tuple[int, ...] = ()
    transcript: str | None = None


Part = TextPart | AudioPart


@dataclass(frozen=True)
class Message:
    """What one side says.

    Attributes:
        role: "system", "user" or "assistant".
        parts: texts and speech in order. In an assistant's message the words of a speech are the text right before it.
    """

    role: str
    parts: tuple[Part, ...]

    @property
    def audio(self) -> list[AudioPart]:
        """Its speech."""
        return [part for part in self.parts if isinstance(part, AudioPart)]

    @property
    def words(self) -> str:
        """Its written text."""
        return " ".join(part.text for part in self.parts if isinstance(part, TextPart))

    def as_text(self) -> Message:
        """The same with its speech as text, where its words are known; of an assistant's message all or none.

        Without its own speech, an assistant's text would be taken for the words of the next one.
        """
        if self.role != "assistant":
            return Message(self.role, tuple(map(_written, self.parts)))
        before_speech = [before for before, part in pairwise((None, *self.parts)) if isinstance(part, AudioPart)]
        if not all(isinstance(part, TextPart) for part in before_speech):
            return self
        return Message(self.role, tuple(part for part in self.parts if isinstance(part, TextPart)))


def with_history_as_text(messages: Sequence[Message]) -> list[Message]:
    """Messages with earlier speech of user and assistant as text, where its words are known.

    Earlier is everything before the question to the last message: up to the last but one message of the assistant.
    """
    answers = [index for index, message in enumerate(messages[:-1]) if message.role == "assistant"]
    question = answers[-1] + 1 if answers else 0
    history = [message if message.role == "system" else message.as_text() for message in messages[:question]]
    return [*history, *messages[question:]]


def _written(part: Part) -> Part:
    """Speech as text, where its words are known."""
    return TextPart(part.transcript) if isinstance(part, AudioPart) and part.transcript is not None else part
