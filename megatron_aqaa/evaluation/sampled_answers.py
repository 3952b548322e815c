"""Answers that a model gives to recorded questions: sampled, read, rated, and taken apart for a chat record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_aqaa.audio.io import load_waveform
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import Recording
from megatron_aqaa.evaluation.preference_rules import AnswerRules, Rating
from megatron_aqaa.inference.answerer import SpokenAnswerer
from megatron_aqaa.inference.sampling import Sampling
from megatron_aqaa.tokenizer.chat import AudioSegment, Turn
from megatron_aqaa.tokenizer.speech import SpeechTokenizer
from megatron_aqaa.vocabulary import Vocabulary

Content = list[dict[str, Any]]
"""Parts of a chat record: `{"type": "text", "text": …}`, then `{"type": "audio", "codes": […]}`."""

SAMPLE_RATE_HZ = 16_000
_ENCODED_AT_A_TIME = 32
_ANSWERS_PER_QUESTION = 1000  # seeds are numbered so that no two answers share one


@dataclass(frozen=True, eq=False)
class HeardQuestion:
    """A question as a model hears it.

    Attributes:
        recording: what was asked, and the right answer.
        audio_ids: [5n] its audio tokens.
    """

    recording: Recording
    audio_ids: NDArray[np.int64]


@dataclass(frozen=True)
class SampledAnswer:
    """One answer.

    Attributes:
        question: what it answers.
        number: among the answers to this question, from 0.
        token_ids: what the model generated, `<|EOT|>` included.
        text: its words.
    """

    question: HeardQuestion
    number: int
    token_ids: list[int]
    text: str


def hear(recording: Recording, tokens: Documents) -> HeardQuestion:
    """A question as it was recorded."""
    return HeardQuestion(recording, tokens[recording.line].token_ids)


def hear_revoiced(
    recordings: Sequence[Recording], tokenizer: SpeechTokenizer, largest: float, seed: int = 0
) -> list[HeardQuestion]:
    """Questions as other voices would ask them: pitch, formants and tempo of each recording scaled by one factor.

    A model answers nearly all questions of its training right, and nothing can be learnt from pairs that it does not
    get wrong. Voices that it has not heard make it err as it errs in use.

    Args:
        recordings: questions.
        tokenizer: hears them.
        largest: factors lie between this and its inverse, evenly in their logarithm.
        seed: draws them.
    """
    features = [tokenizer.features(_revoiced(recording, largest, seed)) for recording in recordings]
    order = sorted(range(len(features)), key=lambda index: len(features[index]))
    heard: dict[int, HeardQuestion] = {}
    for start in range(0, len(order), _ENCODED_AT_A_TIME):
        indices = order[start : start + _ENCODED_AT_A_TIME]
        for index, codes in zip(indices, tokenizer.encode_features([features[i] for i in indices]), strict=True):
            heard[index] = HeardQuestion(recordings[index], np.asarray(tokenizer.token_ids(codes), np.int64))
    return [heard[index] for index in range(len(recordings))]


def _revoiced(recording: Recording, largest: float, seed: int) -> Tensor:
    """The recording played faster and higher, or slower and lower, [N] at 16 kHz."""
    logarithm = np.random.default_rng((seed, recording.line)).uniform(-1, 1) * np.log(largest)
    waveform = load_waveform(recording.audio).numpy()
    faster = soxr.resample(waveform, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ / np.exp(logarithm))
    return torch.from_numpy(faster.astype(np.float32))


def spoken_question(question: HeardQuestion, vocabulary: Vocabulary) -> Content:
    """A question as the content of a chat record."""
    codes = _codes(question.audio_ids, vocabulary)
    return [{"type": "audio", "codes": codes, "transcript": question.recording.text}]


def spoken_answer(text: str, audio_ids: Iterable[int], vocabulary: Vocabulary) -> Content:
    """An answer as the content of a chat record."""
    return [{"type": "text", "text": text}, {"type": "audio", "codes": _codes(audio_ids, vocabulary)}]


def _codes(audio_ids: Iterable[int], vocabulary: Vocabulary) -> list[int]:
    """Audio token ids counted from the first linguistic code, over both codebooks."""
    return [int(token_id) - vocabulary.linguistic_start for token_id in audio_ids]


class AnswerSampler:
    """Lets one model answer; an answer depends on question, number and seed alone, not on what is asked beside it.

    Args:
        answerer: the model with its tokenizers and voice.
        sampling: how; the seed is that of all answers.
    """

    def __init__(self, answerer: SpokenAnswerer, sampling: Sampling) -> None:
        self.answerer, self.sampling = answerer, sampling
        self._first_text = answerer.engine.answer_format.text_limit

    def answers(
        self, wanted: Sequence[tuple[HeardQuestion, int]], on_progress: Callable[[int], None] = lambda done: None
    ) -> list[SampledAnswer]:
        """Whole answers to (question, number) each."""
        return self._generate(wanted, self.sampling, on_progress)

    def openings(self, wanted: Sequence[tuple[HeardQuestion, int]]) -> list[SampledAnswer]:
        """The same answers up to the end of their first text chunk, which is the whole text of most.

        Costs a tenth.
        """
        return self._generate(wanted, replace(self.sampling, opening=True), lambda done: None)

    def opens_right(self, opening: SampledAnswer) -> bool:
        """Whether the right answer begins with the words of an opening."""
        tokenizer = self.answerer.text_tokenizer
        expected = tokenizer.encode(opening.question.recording.answer)
        return opening.text == tokenizer.decode(expected[: self._first_text])

    def rate(self, answer: SampledAnswer, rules: AnswerRules) -> Rating:
        """What the rules say; speaks the answer where they must hear it."""
        speak = lambda: self.answerer.speech(answer.token_ids, self._seed(answer.question, answer.number))
        return rules.rate(answer.question.recording, answer.text, len(self.audio_ids(answer.token_ids)), speak)

    def content(self, answer: SampledAnswer) -> Content | None:
        """The answer as text and codes, or None if these do not give its tokens back.

        They do not where the text was sampled in unusual pieces or the answer has several spoken segments: training
        would then read other tokens than the model has said.
        """
        audio_ids = self.audio_ids(answer.token_ids)
        try:
            encoded = self.answerer.template.encode([Turn("assistant", (answer.text, AudioSegment(audio_ids)))])
        except ValueError:  # without words, or cut off within a group
            return None
        if encoded.token_ids[encoded.loss_mask == 1].tolist() != answer.token_ids:
            return None
        return spoken_answer(answer.text, audio_ids, self.answerer.vocabulary)

    def audio_ids(self, token_ids: Sequence[int]) -> list[int]:
        """The audio tokens among an answer's."""
        return [token_id for token_id in token_ids if self.answerer.vocabulary.is_audio(token_id)]

    def _generate(
        self, wanted: Sequence[tuple[HeardQuestion, int]], sampling: Sampling, on_progress: Callable[[int], None]
    ) -> list[SampledAnswer]:
        prompts = [self.answerer.prompt_of_tokens(question.audio_ids) for question, _ in wanted]
        seeds = [self._seed(question, number) for question, number in wanted]
        answers = self.answerer.engine.generate(prompts, sampling, on_progress, seeds)
        return [
            SampledAnswer(question, number, answer.token_ids, self.answerer.text(answer.token_ids))
            for (question, number), answer in zip(wanted, answers, strict=True)
        ]

    def _seed(self, question: HeardQuestion, number: int) -> int:
        return (self.sampling.seed * 1_000_003 + question.recording.line) * _ANSWERS_PER_QUESTION + number
