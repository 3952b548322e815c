"""Pre-training documents: the five tasks of the blend, made of recordings, their audio tokens and their words.

=============  ==========================================================================================
continuation   `bos <audio_start> groups <audio_end> eot`
asr            `bos <audio_start> groups <audio_end> text eot`
tts            `bos text <audio_start> groups <audio_end> eot`
interleaved    `bos` text and audio of one recording, laid out as in an answer (10 : 15), `eot`; needs no alignment
text           `bos text eot`; where a recording asks something: `bos question \\n answer eot`
=============  ==========================================================================================

No instruction marks the task: it shows from what comes first. The published reports name the tasks and their shares
(FACTS §3) but not these layouts; they are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset
from numpy.typing import NDArray

from megatron_aqaa.data.manifest import Recording
from megatron_aqaa.tokenizer.chat import spoken_segment
from megatron_aqaa.tokenizer.text import TextCodec
from megatron_aqaa.vocabulary import GROUP_SIZE, AnswerFormat, Vocabulary

Ids = list[int]


@dataclass(frozen=True)
class SpeechTokens:
    """Tokens of recordings: their words and their audio.

    Attributes:
        audio: Audio tokens, sequence i belongs to line i of the manifest.
        text: Text tokenizer.
        vocabulary: Id layout.
        answer_format: Layout of text and audio in an answer.
    """

    audio: IndexedDataset
    text: TextCodec
    vocabulary: Vocabulary
    answer_format: AnswerFormat = AnswerFormat()

    def is_rejected(self, recording: Recording) -> bool:
        """True if the recording could not be tokenized: a single `pad` stands in its place."""
        return recording.line < len(self.audio) and self.audio.get(recording.line).tolist() == [self.vocabulary.pad]

    def audio_ids(self, recording: Recording) -> NDArray[np.int64]:
        """Groups of a recording, [5n].

        Raises:
            ValueError: They are not whole groups of audio tokens, or the manifest is longer than the tokens.
        """
        where = f"manifest line {recording.line + 1}"
        if recording.line >= len(self.audio):
            raise ValueError(f"{where}: only {len(self.audio)} recordings have tokens; tokenize the speech again")
        token_ids = self.audio.get(recording.line).astype(np.int64)
        if not len(token_ids) or len(token_ids) % GROUP_SIZE or not self.vocabulary.is_audio(token_ids).all():
            raise ValueError(f"{where}: its {len(token_ids)} tokens are not whole audio groups; tokenize it again")
        return token_ids

    def segment(self, recording: Recording) -> Ids:
        """`<audio_start> groups <audio_end>`."""
        return [self.vocabulary.audio_start, *self.audio_ids(recording).tolist(), self.vocabulary.audio_end]

    def words(self, recording: Recording) -> Ids:
        """Text tokens of what is said."""
        return self.text.encode(recording.text)


def _continuation(recording: Recording, tokens: SpeechTokens) -> Ids:
    return tokens.segment(recording)


def _asr(recording: Recording, tokens: SpeechTokens) -> Ids:
    return tokens.segment(recording) + tokens.words(recording)


def _tts(recording: Recording, tokens: SpeechTokens) -> Ids:
    return tokens.words(recording) + tokens.segment(recording)


def _interleaved(recording: Recording, tokens: SpeechTokens) -> Ids:
    words, audio = tokens.words(recording), tokens.audio_ids(recording)
    return spoken_segment(words, audio, tokens.vocabulary, tokens.answer_format).tolist()


def _text(recording: Recording, tokens: SpeechTokens) -> Ids:
    lines = [recording.text, recording.answer] if recording.answer else [recording.text]
    return tokens.text.encode("\n".join(lines))


PRETRAINING_TASKS: dict[str, Callable[[Recording, SpeechTokens], Ids]] = {
    "continuation": _continuation,
    "asr": _asr,
    "tts": _tts,
    "interleaved": _interleaved,
    "text": _text,
}


NEED_TEXT = ("asr", "tts", "interleaved", "text")


def pretraining_recordings(task: str, recordings: Sequence[Recording]) -> list[Recording]:
    """Recordings of which a task makes one document each: all whose words it knows, if it needs them.

    For "text" it is each wording once.

    Raises:
        ValueError: Unknown task.
    """
    if task not in PRETRAINING_TASKS:
        raise ValueError(f"unknown pre-training task {task!r}; known: {', '.join(PRETRAINING_TASKS)}")
    if task not in NEED_TEXT:
        return list(recordings)
    spoken = [recording for recording in recordings if recording.text]
    if task == "text":
        return list({(recording.text, recording.answer): recording for recording in spoken}.values())
    return spoken


def pretraining_document(task: str, recording: Recording, tokens: SpeechTokens) -> Ids:
    """Token ids of one document.

    Raises:
        ValueError: The recording has no proper tokens.
    """
    return [tokens.vocabulary.bos, *PRETRAINING_TASKS[task](recording, tokens), tokens.vocabulary.eot]
