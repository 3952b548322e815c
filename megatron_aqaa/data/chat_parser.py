"""Messages from JSON: every key, value, audio file and code is checked, every fault is told with its place."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_aqaa.data.chat_messages import AudioPart, Message, Part, TextPart
from megatron_aqaa.ops.index import deinterleave_codes
from megatron_aqaa.vocabulary import GROUP_SIZE, Vocabulary

ROLES = ("system", "user", "assistant")


class ChatError(ValueError):
    """A record that cannot be used.

    Attributes:
        problem: kind of fault in two or three words, for counting.
    """

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(reason)
        self.problem = problem


def check_keys(raw: Any, where: str, known: Collection[str], required: Collection[str] = ()) -> None:
    """Refuse what is not an object, has a key that is not known, or lacks one that is required."""
    check_type(raw, dict, where, "an object")
    for key in raw:
        if key not in known:
            raise ChatError("unknown key", f"{where}: unknown key {key!r}; {nearest(key, known)}")
    for key in required:
        if key not in raw:
            raise ChatError("missing key", f"{where}: no key {key!r}, found {', '.join(raw) or 'none'}")


def check_type(raw: Any, kind: type, where: str, expected: str) -> None:
    """Refuse a value of another type."""
    if not isinstance(raw, kind):
        raise ChatError("wrong type", f"{where}: expected {expected}, found {shown(raw)}")


def nearest(name: str, known: Collection[str]) -> str:
    """What may have been meant."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def shown(raw: Any) -> str:
    """A value, cut to fit into a message."""
    text = repr(raw)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class MessageParser:
    """Reads messages of one file; every method raises `ChatError`, which names the place in the record.

    Attributes:
        folder: where paths of audio files start.
        vocabulary: sizes of the codebooks.
        check_audio: looks at an audio file.
    """

    folder: Path
    vocabulary: Vocabulary
    check_audio: Callable[[Path], None]

    def messages(self, raw: Any, where: str) -> tuple[Message, ...]:
        """A conversation."""
        check_type(raw, list, where, "a list of messages")
        return tuple(self.message(item, f"{where}[{index}]") for index, item in enumerate(raw))

    def message(self, raw: Any, where: str) -> Message:
        """A message with its role."""
        check_keys(raw, where, ("role", "content", "transcript"), ("role", "content"))
        role = raw["role"]
        check_type(role, str, f"{where}.role", f"one of {', '.join(ROLES)}")
        if role not in ROLES:
            raise ChatError("unknown role", f"{where}.role: unknown role {role!r}; {nearest(role, ROLES)}")
        parts = self._content(raw["content"], f"{where}.content")
        transcript = _transcript(raw, where)
        if transcript is not None:
            parts = _with_transcript(parts, transcript, where)
        return self._message(role, parts, where)

    def answer(self, raw: Any, where: str) -> Message:
        """The assistant's message: one as above, or its content alone."""
        if not isinstance(raw, dict):
            return self._message("assistant", self._content(raw, where), where)
        message = self.message(raw, where)
        if message.role != "assistant":
            raise ChatError("unknown role", f"{where}.role: {message.role!r}; an answer is the assistant's")
        return message

    def _message(self, role: str, parts: list[Part], where: str) -> Message:
        return Message(role, tuple(_words_first(parts, where) if role == "assistant" else parts))

    def _content(self, raw: Any, where: str) -> list[Part]:
        if isinstance(raw, str):
            return [_text(raw, where)]
        check_type(raw, list, where, "a text or a list of parts")
        if not raw:
            raise ChatError("empty text", f"{where}: has no parts; give it a text or speech")
        return [self._part(item, f"{where}[{index}]") for index, item in enumerate(raw)]

    def _part(self, raw: Any, where: str) -> Part:
        check_type(raw, dict, where, "an object")
        kind = raw.get("type")
        if kind == "text":
            check_keys(raw, where, ("type", "text"), ("text",))
            return _text(raw["text"], f"{where}.text")
        if kind == "audio":
            check_keys(raw, where, ("type", "path", "codes", "transcript"))
            return self._audio(raw, where)
        if "type" not in raw:
            raise ChatError("missing key", f"{where}: no key 'type', found {', '.join(raw) or 'none'}")
        hint = nearest(str(kind), ("text", "audio"))
        raise ChatError("unknown part type", f"{where}.type: unknown type {shown(kind)}; {hint}")

    def _audio(self, raw: dict[str, Any], where: str) -> AudioPart:
        if ("path" in raw) == ("codes" in raw):
            found = "both" if "path" in raw else "neither"
            raise ChatError("missing key", f"{where}: speech is a path or codes, found {found}")
        transcript = _transcript(raw, where)
        if "codes" in raw:
            return AudioPart(codes=self._codes(raw["codes"], f"{where}.codes"), transcript=transcript)
        check_type(raw["path"], str, f"{where}.path", "a file name")
        path = self.folder / raw["path"]
        try:
            self.check_audio(path)
        except ChatError as error:
            raise ChatError(error.problem, f"{where}.path: {error}") from None
        return AudioPart(path=path, transcript=transcript)

    def _codes(self, raw: Any, where: str) -> tuple[int, ...]:
        check_type(raw, list, where, "a list of codes")
        if not raw:
            raise ChatError("incomplete group", f"{where}: is empty; give at least one group of {GROUP_SIZE} codes")
        if any(type(code) is not int for code in raw):
            wrong = next(code for code in raw if type(code) is not int)
            raise ChatError("wrong type", f"{where}: expected whole numbers, found {shown(wrong)}")
        stop = self.vocabulary.linguistic_size + self.vocabulary.semantic_size
        for place, code in enumerate(raw):
            if not 0 <= code < stop:
                raise ChatError("codes out of range", f"{where}[{place}] = {code} lies outside 0 … {stop - 1}")
        if len(raw) % GROUP_SIZE:
            raise ChatError("incomplete group", f"{where}: {len(raw)} codes are not whole groups [L L S S S]")
        self._check_order(raw, where)
        return tuple(raw)

    def _check_order(self, codes: list[int], where: str) -> None:
        try:
            deinterleave_codes(np.array(codes), semantic_start=self.vocabulary.linguistic_size)
        except ValueError as error:
            raise ChatError("wrong order of codebooks", f"{where}: {error}") from None


def _text(raw: Any, where: str) -> TextPart:
    check_type(raw, str, where, "a text")
    if not raw.strip():
        raise ChatError("empty text", f"{where}: is empty; take the part out or give it words")
    try:
        raw.encode()  # JSON can name half a surrogate pair, UTF-8 and the text model have none
    except UnicodeEncodeError as error:
        raise ChatError("broken text", f"{where}: is no text ({error}); write the character whole") from None
    return TextPart(raw)


def _transcript(raw: dict[str, Any], where: str) -> str | None:
    """The transcript of a message or a part; null is none."""
    transcript = raw.get("transcript")
    return None if transcript is None else _text(transcript, f"{where}.transcript").text


def _with_transcript(parts: list[Part], transcript: str, where: str) -> list[Part]:
    """Parts of a message with the transcript that stands at the message."""
    spoken = [index for index, part in enumerate(parts) if isinstance(part, AudioPart)]
    if len(spoken) != 1:
        remedy = "give every audio part its own" if spoken else "take it out"
        raise ChatError("misplaced transcript", f"{where}.transcript: belongs to {len(spoken)} audio parts; {remedy}")
    part = parts[spoken[0]]
    assert isinstance(part, AudioPart)
    if part.transcript not in (None, transcript):
        raise ChatError("misplaced transcript", f"{where}.transcript: is not that of its audio part; keep one")
    return [*parts[: spoken[0]], AudioPart(part.path, part.codes, transcript), *parts[spoken[0] + 1 :]]


def _words_first(parts: Sequence[Part], where: str) -> list[Part]:
    """An assistant's parts with the transcript of each speech as the text before it, if there is none."""
    ordered: list[Part] = []
    for part in parts:
        if isinstance(part, AudioPart) and part.transcript is not None:
            previous = ordered[-1] if ordered else None
            if not isinstance(previous, TextPart):
                ordered.append(TextPart(part.transcript))
            elif previous.text.split() != part.transcript.split():
                found = f"{shown(part.transcript)} after the text {shown(previous.text)}"
                raise ChatError("misplaced transcript", f"{where}: an audio part has the transcript {found}; keep one")
            part = AudioPart(part.path, part.codes)
        ordered.append(part)
    return ordered
