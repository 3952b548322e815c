"""A corpus of a few recordings: manifest, random audio tokens, and a text model trained on its words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_aqaa.data.indexed import Documents, DocumentWriter
from megatron_aqaa.data.manifest import Recording, read_recordings
from megatron_aqaa.data.pretraining import SpeechTokens
from megatron_aqaa.tokenizer.chat import ChatTemplate
from megatron_aqaa.tokenizer.text import TextConfig, TextTokenizer, train_text_model
from megatron_aqaa.vocabulary import GROUP_DURATION_S, Vocabulary

ANSWERS = {"what is the opposite of hot": "the opposite is cold", "what day is after monday": "it is tuesday"}
STYLES = {"neutral": "", "slow": " say it slowly"}


@dataclass(frozen=True)
class Corpus:
    """The corpus in `directory`: `manifest.jsonl`, `audio.bin/.idx`, `text.model`, `vocabulary.yaml`."""

    directory: Path
    recordings: list[Recording]
    tokens: SpeechTokens
    template: ChatTemplate

    @property
    def text(self) -> TextTokenizer:
        return self.tokens.text

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokens.vocabulary

    def find(self, role: str, style: str = "neutral", split: str = "train") -> Recording:
        """The first recording of this description."""
        found = (r for r in self.recordings if (r.role, r.style, r.split) == (role, style, split))
        return next(found)


def make_corpus(directory: Path) -> Corpus:
    """Two questions in two styles by three voices (one of them for validation), three takes of each answer."""
    records, common = list(_records()), {"duration_s": 0.5, "speaker": "x"}
    lines = (json.dumps({"id": i, "audio": f"{i}.wav", **common, **r}) for i, r in enumerate(records))
    (directory / "manifest.jsonl").write_text("".join(line + "\n" for line in lines))
    train_text_model((r["text"] for r in records), directory / "text.model", TextConfig(size=46))
    text = TextTokenizer(directory / "text.model")
    text.vocabulary().save(directory / "vocabulary.yaml")
    write_audio(directory / "audio", text.vocabulary(), len(records))
    tokens = SpeechTokens(Documents(directory / "audio").tokens, text, text.vocabulary())
    recordings = read_recordings(directory / "manifest.jsonl")
    return Corpus(directory, recordings, tokens, ChatTemplate(text, text.vocabulary()))


def write_audio(prefix: Path, vocabulary: Vocabulary, num_recordings: int) -> None:
    """Random groups: recording i has 4 + i % 5 of them."""
    random = np.random.default_rng(0)
    starts = [vocabulary.linguistic_start] * 2 + [vocabulary.semantic_start] * 3
    with DocumentWriter(prefix, vocabulary) as writer:
        for index in range(num_recordings):
            writer.add((random.integers(0, 1024, (4 + index % 5, 5)) + starts).ravel())


def audio_hours(recordings: list[Recording]) -> float:
    """Hours of the tokens that `write_audio` made."""
    return sum(4 + recording.line % 5 for recording in recordings) * GROUP_DURATION_S / 3600


def _records() -> list[dict[str, str]]:
    splits = ("train", "train", "validation")
    questions = [
        {"role": "user", "split": split, "text": question + words, "style": style, "answer": answer}
        for question, answer in ANSWERS.items()
        for style, words in STYLES.items()
        for split in splits
    ]
    takes = [
        {"role": "assistant", "split": "train", "text": answer, "style": style}
        for answer in ANSWERS.values()
        for style in STYLES
        for _ in range(3)
    ]
    return questions + takes
