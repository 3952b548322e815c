"""Was the style command followed? Measured on the waveform: how long the words take, and how high the voice is.

Every answer is compared with the assistant's own neutral recordings of the same words, because words differ in length
and melody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from megatron_aqaa.audio.pitch import estimate_pitch

SAMPLE_RATE_HZ = 16000
_FRAME_LENGTH = 320
# A frame counts as speech when it is at most this far below the loudest one: above the noise floor of the recordings
# (about -45 dB), below their weakest final consonants.
_SPEECH_RANGE_DB = 35.0


@dataclass(frozen=True)
class Manner:
    """How something was said.

    Attributes:
        duration_s: from the first to the last frame of speech.
        f0_hz: median F0 of the voiced frames; 0 if there are none.
    """

    duration_s: float
    f0_hz: float


@dataclass(frozen=True)
class StyleThresholds:
    """Where a style begins, as ratios to the neutral recording of the same words.

    Each lies halfway (geometrically) between 1 and the median of the assistant's recordings in that style: 1.40 slow,
    0.75 quick, 1.36 high, 0.72 low. There all 1,640 recordings are told apart without one error; the nearest of them
    are at 1.25, 0.84, 1.28 and 0.78, neutral ones spread over 0.94–1.08 (duration) and 0.95–1.06 (F0).

    Attributes:
        slow_duration: slow from here up.
        quick_duration: quick from here down.
        high_f0: high from here up.
        low_f0: low from here down.
        plausible_duration: outside of this range the words cannot all be there, or something else is: a cut-off answer
            is not a quick one. Follows no style.
    """

    slow_duration: float = 1.18
    quick_duration: float = 0.87
    high_f0: float = 1.17
    low_f0: float = 0.85
    plausible_duration: tuple[float, float] = (0.5, 2.0)


class StyleCheck:
    """Judges whether a spoken answer follows its style."""

    def __init__(self, references: Mapping[str, Manner], thresholds: StyleThresholds | None = None) -> None:
        """Takes the neutral manner of every answer, by its text.

        Raises:
            ValueError: a reference holds no voiced speech, so that nothing can be compared with it.
        """
        for text, manner in references.items():
            if manner.duration_s == 0 or manner.f0_hz == 0:
                raise ValueError(
                    f"the neutral recordings of {text!r} hold no voiced speech: the assistant needs another voice"
                )
        self.references = dict(references)
        self.thresholds = thresholds or StyleThresholds()

    def follows(self, waveform: Tensor, answer: str, style: str) -> bool:
        """Whether the answer is spoken in the style.

        Args:
            waveform: [N] float32 at 16 kHz.
            answer: text that is spoken.
            style: neutral, slow, quick, high or low; neutral means none of the other four.

        Raises:
            ValueError: unknown style, or no reference for the answer.
        """
        if answer not in self.references:
            raise ValueError(f"no neutral recording of {answer!r} to compare with; there are {len(self.references)}")
        return self.follows_manner(measure_manner(waveform), self.references[answer], style)

    def follows_manner(self, manner: Manner, reference: Manner, style: str) -> bool:
        """The decision on measured values; arguments as in `follows`."""
        duration, f0 = manner.duration_s / reference.duration_s, manner.f0_hz / reference.f0_hz
        at = self.thresholds
        holds = {
            "slow": duration >= at.slow_duration,
            "quick": duration <= at.quick_duration,
            "high": f0 >= at.high_f0,
            "low": f0 <= at.low_f0,
        }
        holds["neutral"] = not any(holds.values())
        if style not in holds:
            raise ValueError(f"unknown style {style!r}; expected one of {', '.join(holds)}")
        shortest, longest = at.plausible_duration
        return shortest <= duration <= longest and manner.f0_hz > 0 and holds[style]


def measure_manner(waveform: Tensor) -> Manner:
    """Measures one waveform [N] float32 at 16 kHz; silence and scraps shorter than a frame measure zero."""
    if len(waveform) < _FRAME_LENGTH:
        return Manner(0.0, 0.0)
    frames = waveform[: len(waveform) // _FRAME_LENGTH * _FRAME_LENGTH].view(-1, _FRAME_LENGTH)
    energy = frames.square().mean(-1)
    is_speech = energy > energy.max() * 10 ** (-_SPEECH_RANGE_DB / 10)
    where = torch.nonzero(is_speech)[:, 0]
    if not len(where):
        return Manner(0.0, 0.0)
    num_frames = int(where[-1] - where[0]) + 1
    return Manner(num_frames * _FRAME_LENGTH / SAMPLE_RATE_HZ, float(estimate_pitch(waveform[None]).median_hz()))


def median_manner(takes: Iterable[Manner]) -> Manner:
    """What several recordings of the same words have in common: the median of each measure."""
    manners = list(takes)
    return Manner(median(manner.duration_s for manner in manners), median(manner.f0_hz for manner in manners))
