"""An independent judge of spoken answers: PocketSphinx with its own English model and a closed grammar.

It shares nothing with what is trained here: other features, other acoustic model, learned from human speech. It chooses
among the answers of the domain, so it measures whether the right answer can be told from all others by ear. Judge the
original recordings first: what it misses there is its own error and bounds every score.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE_HZ = 16000
# Words of the domain that the model's dictionary (cmudict) lacks, in its phones.
PRONUNCIATIONS = {"oink": "OY NG K"}
# Synthetic and decoded speech may hold exact digital silence, which the model has never heard; real quiet rooms have
# noise of this order (standard deviation in 16-bit steps).
_DITHER_LSB = 30.0
_SILENCE_S = 0.2
_FULL_SCALE = 32767


class SpokenAnswerJudge:
    """Hears which of the given answers is spoken.

    Not thread-safe: one decoder, one utterance at a time.
    """

    def __init__(self, answers: Iterable[str]) -> None:
        """Prepares the recogniser for a closed set of answers.

        Args:
            answers: lower-case words; every word must be in the model's dictionary or in `PRONUNCIATIONS`.

        Raises:
            ValueError: no answers, or a word that cannot be pronounced.
            RuntimeError: PocketSphinx is not installed.
        """
        self.answers = tuple(dict.fromkeys(answers))
        if not self.answers:
            raise ValueError("the judge needs at least one answer to listen for")
        self._decoder = _create_decoder()
        for word in sorted({word for answer in self.answers for word in answer.split()}):
            self._teach(word)
        self._decoder.add_jsgf_string("answers", _grammar(self.answers))
        self._decoder.activate_search("answers")

    def recognise(self, waveform: Tensor) -> str | None:
        """Returns the answer that was heard, or None when nothing fits.

        Args:
            waveform: [N] float32 at 16 kHz, full scale 1.

        Raises:
            ValueError: not one-dimensional, empty, or not finite.
        """
        if waveform.ndim != 1 or not len(waveform):
            raise ValueError(f"the judge hears one waveform [N], found shape {list(waveform.shape)}")
        if not torch.isfinite(waveform).all():
            raise ValueError("the waveform holds NaN or infinite samples")
        # Its front end carries the last utterance's levels over to the next: without this, order would matter.
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw(_prepared(waveform), no_search=False, full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis and hypothesis.hypstr in self.answers else None

    def _teach(self, word: str) -> None:
        if self._decoder.lookup_word(word) is not None:
            return
        if word not in PRONUNCIATIONS:
            raise ValueError(f"the judge cannot pronounce {word!r}: add it to PRONUNCIATIONS in {__name__}")
        self._decoder.add_word(word, PRONUNCIATIONS[word], True)


def _create_decoder():  # type: ignore[no-untyped-def]  # the package has no type hints
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise RuntimeError("judging speech needs PocketSphinx: pip install pocketsphinx==5.1.1") from None
    return Decoder(samprate=SAMPLE_RATE_HZ, loglevel="FATAL")


def _grammar(answers: Iterable[str]) -> str:
    return f"#JSGF V1.0;\ngrammar answers;\npublic <answer> = {' | '.join(answers)};\n"


def _prepared(waveform: Tensor) -> bytes:
    """PCM16 at a fixed level, dithered, with dithered silence at both ends. The same input gives the same bytes."""
    peak = max(float(waveform.abs().max()), 0.01)
    samples = waveform.detach().cpu().double().numpy() * (0.6 * _FULL_SCALE / peak)
    padded = np.pad(samples, round(_SILENCE_S * SAMPLE_RATE_HZ))
    padded += _DITHER_LSB * np.random.default_rng(0).standard_normal(len(padded))
    return padded.clip(-_FULL_SCALE - 1, _FULL_SCALE).astype("<i2").tobytes()
