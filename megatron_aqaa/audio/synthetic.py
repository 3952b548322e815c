"""Synthetic recordings: what the speech engine says, as a microphone at 16 kHz would have caught it."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from megatron_aqaa.audio.espeak import SILENCE, Espeak, Phone, Speech, SpeechEngineError

__all__ = ["SILENCE", "Espeak", "Phone", "Speech", "SpeechEngineError", "record"]

SAMPLE_RATE_HZ = 16000
FULL_SCALE = 32767


def record(speech: Speech, seed: int, gain: float = 1.0, noise_lsb: float = 10.0, multiple_of: int = 1920) -> Speech:
    """Turns engine output into a recording at 16 kHz: trimmed, levelled, with a noise floor, padded.

    The noise matters: without it synthetic speech has exact digital silence, which no recogniser was trained on
    (phone error .46 without, .11 with).

    Args:
        speech: engine output.
        seed: of the noise.
        gain: 1 puts the peak at 0.6 of full scale.
        noise_lsb: standard deviation of the white noise in units of one 16-bit step.
        multiple_of: the length is padded to a multiple of this (1920 samples = 120 ms = one group of audio tokens).

    Returns:
        [N] int16 at 16 kHz. A silent phone marks the padding at the end.
    """
    waveform = soxr.resample(speech.samples.astype(np.float32), speech.sample_rate_hz, SAMPLE_RATE_HZ)
    start, stop = _speech_bounds(waveform, margin_before=480, margin_after=800)
    level = np.abs(waveform).max()
    num_samples = -(-(stop - start) // multiple_of) * multiple_of
    padded = np.zeros(num_samples, dtype=np.float32)
    padded[: stop - start] = waveform[start:stop] * (0.6 * FULL_SCALE * gain / level)
    padded += noise_lsb * np.random.default_rng(seed).standard_normal(num_samples, dtype=np.float32)
    samples = np.clip(np.rint(padded), -FULL_SCALE - 1, FULL_SCALE).astype(np.int16)
    phones = _shifted(speech.phones, start / SAMPLE_RATE_HZ, (stop - start) / SAMPLE_RATE_HZ)
    return Speech(samples, SAMPLE_RATE_HZ, phones)


def _speech_bounds(waveform: NDArray[np.float32], margin_before: int, margin_after: int) -> tuple[int, int]:
    loud = np.nonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max())[0]
    if not len(loud):
        raise ValueError("the engine was silent: the text holds nothing that can be spoken")
    return max(0, int(loud[0]) - margin_before), min(len(waveform), int(loud[-1]) + margin_after)


def _shifted(phones: tuple[Phone, ...], trimmed_s: float, duration_s: float) -> tuple[Phone, ...]:
    """Phone times after `trimmed_s` were cut from the start, with silence from `duration_s` on."""
    starts_s = [max(0.0, phone.start_s - trimmed_s) for phone in phones]
    ends_s = [*starts_s[1:], duration_s]
    kept = [
        Phone(round(start_s, 4), phone.symbol)
        for phone, start_s, end_s in zip(phones, starts_s, ends_s, strict=True)
        if end_s > start_s and start_s < duration_s
    ]
    return tuple(kept if kept[-1].symbol == SILENCE else [*kept, Phone(round(duration_s, 4), SILENCE)])
