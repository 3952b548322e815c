"""The chat template: turns of text and speech → token ids and loss mask.

A turn is `<|BOT|>{role}\\n{content}<|EOT|>` (stepfun-ai/Step-Audio: `tokenizer.py`). Speech stands between
`<audio_start>` and `<audio_end>` in whole groups; where the assistant says a text aloud, text and speech are laid out
by the `AnswerFormat`, by default 10 text tokens to 15 audio tokens, text first (Step-Audio-AQAA, arXiv 2506.08967).

Loss is on the content of a target turn, the markers of its speech and its `<|EOT|>`: everything that the model has to
generate. It is never on a turn's header, which is part of the prompt, nor on padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_aqaa.ops.index import deinterleave_codes, interleave_text_audio
from megatron_aqaa.tokenizer.text import ROLES, TextCodec
from megatron_aqaa.vocabulary import AnswerFormat, Vocabulary

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AudioSegment:
    """Speech without its markers.

    Attributes:
        token_ids: [5n] merged ids in groups `[L L S S S]`.
    """

    token_ids: npt.ArrayLike


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: `system`, `human` or `assistant`.
        parts: texts and speech, in order. In an assistant turn, a text and the speech right after it are one spoken
            segment, laid out by the answer format; several such pairs keep their own markers.
    """

    role: str
    parts: tuple[str | AudioSegment, ...]


class Conversation(NamedTuple):
    """An encoded conversation.

    Attributes:
        token_ids: [S] int64.
        loss_mask: [S] uint8, 1 on tokens that are to be learnt as targets.
    """

    token_ids: Ids
    loss_mask: npt.NDArray[np.uint8]


class ChatTemplate:
    """Encodes conversations for one text model, vocabulary and answer format."""

    def __init__(
        self, text_tokenizer: TextCodec, vocabulary: Vocabulary, answer_format: AnswerFormat | None = None
    ) -> None:
        if len(text_tokenizer) > vocabulary.text_size:
            raise ValueError(
                f"the text model has {len(text_tokenizer)} pieces, the vocabulary room for {vocabulary.text_size}; "
                f"use the vocabulary.yaml that was written with this text model"
            )
        self.text_tokenizer = text_tokenizer
        self.vocabulary = vocabulary
        self.answer_format = answer_format or AnswerFormat()

    def encode(self, turns: Sequence[Turn], loss_on: Literal["last", "all"] = "last") -> Conversation:
        """Encode a conversation for training.

        Args:
            turns: at least one.
            loss_on: targets are the content and `<|EOT|>` of the last turn, which must be the assistant's, or of
                all assistant turns.

        Raises:
            ValueError: no turns, an unknown role, an empty turn, a text without tokens or that the answer format has
                no place for, audio that is not whole groups, or nothing to learn.
        """
        targets = _target_turns(turns, loss_on)
        token_ids: list[Ids] = []
        masks: list[npt.NDArray[np.uint8]] = []
        for turn, is_target in zip(turns, targets, strict=True):
            head, body = self._header(turn.role), np.append(self._content(turn), self.vocabulary.eot)
            token_ids += [head, body]
            masks += [np.zeros(len(head), np.uint8), np.full(len(body), is_target, np.uint8)]
        return Conversation(np.concatenate(token_ids), np.concatenate(masks))

    def prompt(self, turns: Sequence[Turn]) -> Ids:
        """Token ids [S] of `turns` and the header of the assistant's answer, from where generation goes on."""
        whole = [np.concatenate([self._header(t.role), self._content(t), [self.vocabulary.eot]]) for t in turns]
        return np.concatenate([*whole, self._header("assistant")])

    def _header(self, role: str) -> Ids:
        if role not in ROLES:
            raise ValueError(f"role {role!r} is unknown; expected one of {', '.join(ROLES)}")
        return np.array([self.vocabulary.bot, *self.text_tokenizer.encode_role(role)], np.int64)

    def _content(self, turn: Turn) -> Ids:
        if not turn.parts:
            raise ValueError(f"a turn of {turn.role!r} has no parts; give it a text or an audio segment")
        pieces: list[Ids] = []
        parts = list(turn.parts)
        speaks = turn.role == "assistant" and any(isinstance(part, AudioSegment) for part in parts)
        while parts:
            part = parts.pop(0)
            if isinstance(part, AudioSegment):
                pieces.append(self._spoken(np.empty(0, np.int64), part))
                continue
            text = self._text(part)
            spoken = parts[0] if speaks and parts else None
            if isinstance(spoken, AudioSegment):
                pieces.append(self._spoken(text, spoken))
                parts.pop(0)
            elif speaks and self.answer_format.layout == "audio_only":
                raise ValueError(f"layout audio_only has no place for {part!r}, which is not spoken; take it out")
            else:
                pieces.append(text)
        return np.concatenate(pieces)

    def _text(self, words: str) -> Ids:
        token_ids = np.array(self.text_tokenizer.encode(words), np.int64)
        if not len(token_ids):
            raise ValueError(f"the text {words!r} has no tokens in this text model; take it out or give it words")
        return token_ids

    def _spoken(self, text: Ids, segment: AudioSegment) -> Ids:
        v, audio = self.vocabulary, np.asarray(segment.token_ids, np.int64)
        if not len(audio):
            raise ValueError("an audio segment is empty; leave it out or give it at least one group of five tokens")
        deinterleave_codes(audio, **v.audio_range)  # for its checks
        return spoken_segment(text, audio, v, self.answer_format)


def spoken_segment(
    text: npt.ArrayLike, audio: npt.ArrayLike, vocabulary: Vocabulary, answer_format: AnswerFormat
) -> Ids:
    """Words and speech of one segment in the order of `answer_format`, its two markers included.

    Args:
        text: [NT] text token ids; none leaves the speech alone.
        audio: [5n] audio token ids, groups `[L L S S S]`.
        vocabulary: id layout.
        answer_format: see there for the tail rule.
    """
    chunks = answer_format.text_limit, answer_format.audio_chunk
    markers = {"audio_start": vocabulary.audio_start, "audio_end": vocabulary.audio_end}
    words = np.empty(0, np.int64) if answer_format.layout == "audio_only" else text
    return interleave_text_audio(words, audio, *chunks, **markers)


def _target_turns(turns: Sequence[Turn], loss_on: str) -> list[bool]:
    if loss_on not in ("last", "all"):
        raise ValueError(f"loss_on = {loss_on!r}; expected 'last' or 'all'")
    if not turns or (loss_on == "last" and turns[-1].role != "assistant"):
        found = f"a last turn of {turns[-1].role!r}" if turns else "no turns"
        raise ValueError(f"found {found}; a conversation to learn from ends with the assistant's answer")
    targets = [turn.role == "assistant" for turn in turns]
    if not any(targets):
        raise ValueError("no assistant turn in the conversation; there is nothing to learn")
    return [False] * (len(turns) - 1) + [True] if loss_on == "last" else targets
