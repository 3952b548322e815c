"""How much of a recording survives its tokens: what the vocoder speaks from them, against the original.

Words are judged by an independent recogniser that hears the original too, so its own errors are the yardstick: the
closed-set one (`judge`) or, of open sequences of words and of phones, `phone_judge`. Pitch and voicing are those that
are heard in the two waveforms, not those that the vocoder was told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_aqaa.audio.io import load_waveform
from megatron_aqaa.audio.mel import MelSpectrogram
from megatron_aqaa.audio.pitch import PitchConfig, PitchTrack, estimate_pitch
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import Recording
from megatron_aqaa.evaluation.judge import SpokenAnswerJudge
from megatron_aqaa.evaluation.phone_judge import PhoneJudge
from megatron_aqaa.tokenizer.edit_distance import edit_distance
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder

PITCH_TOLERANCE = 0.05
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class RecordingScore:
    """One recording.

    Attributes:
        words: in its text.
        original_word_errors: of the recogniser on the original.
        word_errors: of the recogniser on the resynthesis.
        log_mel_l1: mean absolute difference of the log-mel spectra.
        variance_ratio: variance of the resynthesis' log-mel over that of the original.
        original_f0_hz: median; 0 where nothing is voiced.
        f0_hz: the same of the resynthesis.
        voicing_error: share of frames that are voiced in only one of the two.
        phones: that were said; 0 where no phones are judged, as of the next two.
        original_phone_errors: of the phone judge on the original.
        phone_errors: on the resynthesis.
    """

    words: int
    original_word_errors: int
    word_errors: int
    log_mel_l1: float
    variance_ratio: float
    original_f0_hz: float
    f0_hz: float
    voicing_error: float
    phones: int = 0
    original_phone_errors: int = 0
    phone_errors: int = 0


@dataclass(frozen=True)
class ResynthesisScore:
    """Of all recordings.

    Attributes:
        recordings: how many.
        original_wer: word error rate on the originals.
        wer: on the resynthesis.
        log_mel_l1: mean.
        variance_ratio: mean.
        f0_error: median over recordings of the relative error of their median F0.
        f0_within: share of recordings whose median F0 is within `PITCH_TOLERANCE` of the original's.
        voicing_error: mean.
        original_phone_error: over all phones, on the originals; None where no phones are judged.
        phone_error: on the resynthesis.
    """

    recordings: int
    original_wer: float
    wer: float
    log_mel_l1: float
    variance_ratio: float
    f0_error: float
    f0_within: float
    voicing_error: float
    original_phone_error: float | None = None
    phone_error: float | None = None

    def table(self) -> str:
        """One line a measure."""
        measured = {name: value for name, value in asdict(self).items() if value is not None}
        return "\n".join(f"{name:20} {value:.4f}" for name, value in measured.items())


class ResynthesisTest:
    """Speaks recordings from their tokens and compares.

    Args:
        vocoder: speaks.
        tokens: sequence i holds the tokens of manifest line i.
        judge: hears words.
        spoken: phones of each manifest line, for a judge that hears phones too.
    """

    def __init__(
        self,
        vocoder: TokenVocoder,
        tokens: Documents,
        judge: SpokenAnswerJudge | PhoneJudge,
        spoken: Sequence[Sequence[str]] = (),
    ) -> None:
        self.vocoder, self.tokens, self.judge, self.spoken = vocoder, tokens, judge, spoken
        mel = vocoder.generator.config.mel
        self.log_mel = MelSpectrogram(mel)
        self.pitch = PitchConfig(sample_rate_hz=mel.sample_rate_hz, hop_length=mel.hop_length)

    def score(
        self, recordings: Sequence[Recording], on_progress: OnProgress = lambda done, total: None
    ) -> ResynthesisScore:
        """Scores of all recordings.

        Raises:
            ValueError: no recordings, or one that cannot be read or spoken; names it.
        """
        if not recordings:
            raise ValueError("no recordings to resynthesise")
        scores = []
        for recording in recordings:
            scores.append(self._score(recording))
            on_progress(len(scores), len(recordings))
        return summarise(scores)

    def _score(self, recording: Recording) -> RecordingScore:
        original, spoken = self._pair(recording)
        ours, natural = (self.log_mel(waveform[None]) for waveform in (spoken, original))
        heard, told = (estimate_pitch(waveform[None], self.pitch) for waveform in (spoken, original))
        of_original, of_spoken = self._errors(recording, original), self._errors(recording, spoken)
        return RecordingScore(
            len(recording.text.split()),
            of_original.words,
            of_spoken.words,
            float((ours - natural).abs().mean()),
            float(ours.var() / natural.var()),
            float(told.median_hz()),
            float(heard.median_hz()),
            _voicing_error(heard, told),
            len(self.spoken[recording.line]) if self.spoken else 0,
            of_original.phones,
            of_spoken.phones,
        )

    def _pair(self, recording: Recording) -> tuple[Tensor, Tensor]:
        """Original and resynthesis, cut to the shorter of them: tokens cover whole groups only."""
        if recording.line >= len(self.tokens):
            raise ValueError(f"{recording.audio}: the token data set ends before line {recording.line}")
        original = load_waveform(recording.audio, self.vocoder.sample_rate_hz)
        try:
            spoken = self.vocoder.synthesize(self.tokens[recording.line].token_ids)
        except ValueError as error:
            raise ValueError(f"{recording.audio}: tokens of line {recording.line}: {error}") from None
        length = min(len(original), len(spoken))
        if not length:
            raise ValueError(f"{recording.audio}: no tokens at line {recording.line}")
        return original[:length], spoken[:length]

    def _errors(self, recording: Recording, waveform: Tensor) -> _Errors:
        words = edit_distance(recording.text.split(), (self.judge.recognise(waveform) or "").split())
        if not isinstance(self.judge, PhoneJudge):
            return _Errors(words, 0)
        return _Errors(words, edit_distance(self.spoken[recording.line], self.judge.phones(waveform)))


class _Errors(NamedTuple):
    words: int
    phones: int


def summarise(scores: Sequence[RecordingScore]) -> ResynthesisScore:
    """Rates over all words, means and medians over recordings."""
    words = sum(score.words for score in scores)
    phones = sum(score.phones for score in scores)
    errors = list(_pitch_errors(scores))
    return ResynthesisScore(
        len(scores),
        sum(score.original_word_errors for score in scores) / words,
        sum(score.word_errors for score in scores) / words,
        fmean(score.log_mel_l1 for score in scores),
        fmean(score.variance_ratio for score in scores),
        median(errors) if errors else float("nan"),
        fmean(error <= PITCH_TOLERANCE for error in errors) if errors else float("nan"),
        fmean(score.voicing_error for score in scores),
        sum(score.original_phone_errors for score in scores) / phones if phones else None,
        sum(score.phone_errors for score in scores) / phones if phones else None,
    )


def _pitch_errors(scores: Sequence[RecordingScore]) -> Iterator[float]:
    """Relative errors of the recordings that are voiced; a resynthesis without voice is all wrong."""
    return (abs(score.f0_hz / score.original_f0_hz - 1) for score in scores if score.original_f0_hz)


def _voicing_error(heard: PitchTrack, told: PitchTrack) -> float:
    return float(torch.ne(heard.voiced, told.voiced).float().mean())
