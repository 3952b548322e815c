"""Spoken answers and what the judge and the measuring tape say of them, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class JudgedAnswer:
    """One held-out question with its spoken answer.

    Attributes:
        id: record of the question in the speech manifest.
        split: `unseen_voice` or `unseen_wording`.
        style: style that the question commands, or `neutral`.
        speaker: voice of the question.
        question: its words.
        expected: text of the right answer.
        written: text that the model wrote.
        heard: text that the judge heard in the spoken answer.
        duration_s: length of the spoken answer.
        pitch_hz: median F0 of the spoken answer; 0 if nothing is voiced.
        style_followed: whether a commanded style was followed; None for neutral.
        question_audio: waveform of the question, relative to the run directory.
        answer_audio: waveform of the answer, relative to the run directory.
    """

    id: int
    split: str
    style: str
    speaker: str
    question: str
    expected: str
    written: str
    heard: str
    duration_s: float
    pitch_hz: float
    style_followed: bool | None
    question_audio: str
    answer_audio: str


def save_judged(answers: Iterable[JudgedAnswer], path: Path) -> None:
    """Write one JSON line per answer."""
    path.write_text("".join(json.dumps(asdict(answer)) + "\n" for answer in answers))


def load_judged(path: Path) -> list[JudgedAnswer]:
    """Read what `save_judged` wrote."""
    return [JudgedAnswer(**json.loads(line)) for line in path.read_text().splitlines()]


def dozen(answers: list[JudgedAnswer], size: int = 12) -> list[JudgedAnswer]:
    """The first `size` answers when splits and styles take turns: varied, and chosen without a look at the result."""
    queues: dict[tuple[str, str], list[JudgedAnswer]] = {}
    for answer in answers:
        queues.setdefault((answer.style, answer.split), []).append(answer)
    turns = sorted((turn, index, a) for index, queue in enumerate(queues.values()) for turn, a in enumerate(queue))
    return [answer for _, _, answer in turns[:size]]
