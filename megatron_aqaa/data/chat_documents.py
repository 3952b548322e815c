"""Chat records as documents of token ids and loss masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron_aqaa.data.chat_messages import AudioPart, Message, TextPart, with_history_as_text
from megatron_aqaa.data.chat_parser import ChatError
from megatron_aqaa.data.chat_records import PreferenceRecord, Record
from megatron_aqaa.data.indexed import Document
from megatron_aqaa.tokenizer.chat import AudioSegment, ChatTemplate, Turn
from megatron_aqaa.vocabulary import Vocabulary

History = Literal["text", "audio"]
_TEMPLATE_ROLES = {"system": "system", "user": "human", "assistant": "assistant"}


@dataclass(frozen=True)
class ChatEncoder:
    """Turns records into documents.

    Attributes:
        template: chat template, with text model, vocabulary and answer format.
        loss_on: answers of a conversation that carry loss; of a pair it is always the last one.
        history: earlier speech, where its words are known: as "text" or as "audio".
    """

    template: ChatTemplate
    loss_on: Literal["last", "all"] = "last"
    history: History = "text"

    def encode(self, record: Record, audio_of: Callable[[Path], NDArray[np.int64]]) -> list[Document]:
        """The document of a conversation, or those of a chosen and a rejected answer to the same prompt.

        Args:
            record: what the reader found.
            audio_of: token ids [5n] of an audio file.

        Raises:
            ValueError: the record has no place in the template, or its halves have the same tokens.
        """
        loss_on = "last" if isinstance(record, PreferenceRecord) else self.loss_on
        documents = [
            Document(*self.template.encode([self._turn(message, audio_of) for message in messages], loss_on))
            for messages in self._conversations(record)
        ]
        if len(documents) == 2 and np.array_equal(documents[0].token_ids, documents[1].token_ids):
            raise ChatError("identical halves", "chosen and rejected have the same tokens")
        return documents

    def audio_paths(self, record: Record) -> Iterator[Path]:
        """Audio files that `encode` will ask for."""
        for messages in self._conversations(record):
            for part in (part for message in messages for part in message.audio):
                if part.path is not None:
                    yield part.path

    def _conversations(self, record: Record) -> list[Sequence[Message]]:
        if isinstance(record, PreferenceRecord):
            conversations = [(*record.prompt, answer) for answer in record.answers]
        else:
            conversations = [record.messages]
        return [with_history_as_text(c) if self.history == "text" else c for c in conversations]

    def _turn(self, message: Message, audio_of: Callable[[Path], NDArray[np.int64]]) -> Turn:
        def segment(part: AudioPart) -> AudioSegment:
            start = self.template.vocabulary.linguistic_start
            return AudioSegment(audio_of(part.path) if part.path is not None else np.array(part.codes) + start)

        parts = (part.text if isinstance(part, TextPart) else segment(part) for part in message.parts)
        return Turn(_TEMPLATE_ROLES[message.role], tuple(parts))


def same_text_targets(chosen: Document, rejected: Document, vocabulary: Vocabulary) -> bool:
    """True if the targets of both halves are the same but for their audio codes."""
    text = [
        document.token_ids[(document.loss_mask > 0) & ~vocabulary.is_audio(document.token_ids)]
        for document in (chosen, rejected)
    ]
    return bool(np.array_equal(*text))
