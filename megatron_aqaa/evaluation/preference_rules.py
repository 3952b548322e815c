"""What makes one answer better than another: rules that anybody can check, and no judge.

right    the text is exactly the expected answer; a wrong answer is worth nothing, however it is spoken
style    a commanded style is followed, by duration and pitch of the waveform (`evaluation.style`)
brevity  no more speech than the assistant's longest recording of these words in this style holds

They rank in this order. The recogniser that scores the finished model (`evaluation.judge`) has no say: data that it had
chosen would be trained to please it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from megatron_aqaa.audio.io import load_waveform
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import Recording, select
from megatron_aqaa.evaluation.style import Manner, StyleCheck, measure_manner, median_manner

RIGHT, STYLE = 4.0, 2.0
"""Points for a right text and for a followed style. Brevity gives at most one, so that the order always holds."""


@dataclass(frozen=True)
class Rating:
    """The rules' verdict on one answer.

    Attributes:
        right: the text is the expected one.
        style_followed: None where no style was commanded, or the answer is wrong and nobody listened.
        brevity: 1 up to the length of the longest recording, 0 from twice that on.
    """

    right: bool
    style_followed: bool | None = None
    brevity: float = 0.0

    @property
    def score(self) -> float:
        """Points: 0 for a wrong answer, up to 7 for a right one."""
        if not self.right:
            return 0.0
        return RIGHT + STYLE * (self.style_followed is not False) + self.brevity


def training_takes(recordings: Sequence[Recording]) -> dict[tuple[str, str], list[Recording]]:
    """The assistant's recordings for training by what they say and how."""
    takes: dict[tuple[str, str], list[Recording]] = {}
    for recording in select(recordings, "train", ("assistant",)):
        takes.setdefault((recording.text, recording.style), []).append(recording)
    return takes


class AnswerRules:
    """Rates answers against the assistant's recordings of the training split.

    Args:
        recordings: the whole manifest.
        tokens: audio tokens of each line.
    """

    def __init__(self, recordings: Sequence[Recording], tokens: Documents) -> None:
        self.takes = training_takes(recordings)
        self.lengths = tokens.lengths
        self._checks: dict[str, StyleCheck] = {}  # by answer, made when first asked for

    def rate(self, question: Recording, text: str, num_audio_tokens: int, speak: Callable[[], Tensor]) -> Rating:
        """Rate one answer.

        Args:
            question: what was asked, with its right answer and the commanded style.
            text: what the answer says.
            num_audio_tokens: how long it speaks.
            speak: makes the waveform [N] at 16 kHz; called only where a style was commanded and the text is right,
                because speech costs more than all other rules together.
        """
        if text != question.answer:
            return Rating(right=False)
        commanded = question.style != "neutral"
        return Rating(
            right=True,
            style_followed=self._follows(question, speak()) if commanded else None,
            brevity=self.brevity(question, num_audio_tokens),
        )

    def brevity(self, question: Recording, num_audio_tokens: int) -> float:
        """1 for an answer no longer than the longest recording of it, falling to 0 at twice that length."""
        longest = max(int(self.lengths[take.line]) for take in self._takes(question.answer, question.style))
        return min(1.0, max(0.0, 2.0 - num_audio_tokens / longest))

    def _follows(self, question: Recording, waveform: Tensor) -> bool:
        if question.answer not in self._checks:
            self._checks[question.answer] = StyleCheck({question.answer: self._neutral_manner(question.answer)})
        return self._checks[question.answer].follows(waveform, question.answer, question.style)

    def _neutral_manner(self, text: str) -> Manner:
        return median_manner(measure_manner(load_waveform(take.audio)) for take in self._takes(text, "neutral"))

    def _takes(self, text: str, style: str) -> list[Recording]:
        if (text, style) not in self.takes:
            raise ValueError(f"no recording of {text!r} in the style {style} to compare with; record it for training")
        return self.takes[text, style]
