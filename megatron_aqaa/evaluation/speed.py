"""How soon an answer is heard, and how long it takes, with one user and nothing else to do."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from megatron_aqaa.inference.answerer import SpokenAnswerer

SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True)
class AnsweringSpeed:
    """Medians over `n` streamed answers, from the end of the question on.

    Attributes:
        first_word_s: until the first word is written.
        first_sound_s: until the first stretch of speech is ready.
        real_time_factor: time to make an answer over its duration; below 1 it is spoken without gaps.
        n: answers.
    """

    first_word_s: float
    first_sound_s: float
    real_time_factor: float
    n: int


def measure_speed(answerer: SpokenAnswerer, questions: Iterable[Tensor]) -> AnsweringSpeed | None:
    """Stream an answer to each question [N] at 16 kHz; None without questions."""
    timings = [_time_answer(answerer, question) for question in questions]
    if not timings:
        return None
    first_word_s, first_sound_s, factor = (median(column) for column in zip(*timings, strict=True))
    return AnsweringSpeed(first_word_s, first_sound_s, factor, len(timings))


def _time_answer(answerer: SpokenAnswerer, question: Tensor) -> tuple[float, float, float]:
    started_s = time.perf_counter()
    words_s: list[float] = []
    sounds_s: list[float] = []
    num_samples = 0
    for sound in answerer.stream(question, on_text=lambda _: words_s.append(time.perf_counter() - started_s)):
        sounds_s.append(time.perf_counter() - started_s)
        num_samples += len(sound)
    whole_s = time.perf_counter() - started_s
    first_word_s = words_s[0] if words_s else whole_s  # an untrained model may write nothing that can be read
    return first_word_s, sounds_s[0], whole_s / (num_samples / SAMPLE_RATE_HZ)
