from __future__ import annotations

import numpy as np
import pytest

from megatron_aqaa.audio.synthetic import SILENCE, Espeak, Phone, Speech, record


@pytest.fixture(scope="module")
def hello() -> Speech:
    with Espeak() as engine:
        return engine.speak("it is paris")


def burst(start: int, length: int, total: int) -> Speech:
    """A tone between silences at 16 kHz."""
    samples = np.zeros(total, dtype=np.int16)
    samples[start : start + length] = np.round(9000 * np.cos(np.arange(length) * 0.3))
    phones = (Phone(0.0, SILENCE), Phone(start / 16000, "a"), Phone((start + length) / 16000, SILENCE))
    return Speech(samples, 16000, phones)


def test_recording_is_padded_to_whole_groups(hello: Speech) -> None:
    speech = record(hello, seed=0)
    assert speech.sample_rate_hz == 16000
    assert speech.samples.dtype == np.int16
    assert len(speech.samples) % 1920 == 0
    assert len(speech.samples) / 16000 == pytest.approx(len(hello.samples) / 22050, abs=0.25)
    assert len(record(hello, seed=0, multiple_of=1).samples) % 1920 != 0


def test_trimming_shifts_the_phones_by_hand() -> None:
    # The tone starts at 4000; 480 samples before it are kept, so it starts at 30 ms. It lasts 100 ms, then 50 ms stay.
    speech = record(burst(start=4000, length=1600, total=16000), seed=0)
    assert speech.phones == (Phone(0.0, SILENCE), Phone(0.03, "a"), Phone(0.13, SILENCE))
    assert len(speech.samples) == 3840  # 480 + 1600 + 800 = 2880, up to two groups
    tone = speech.samples[480:2080].astype(float)
    rest = np.concatenate([speech.samples[:480], speech.samples[2080:]]).astype(float)
    assert np.abs(tone).mean() > 100 * np.abs(rest).mean()


def test_speech_that_fills_the_recording_still_ends_with_silence() -> None:
    speech = record(burst(start=0, length=1900, total=1900), seed=0)
    assert speech.phones == (Phone(0.0, "a"), Phone(0.1187, SILENCE))


def test_level_and_noise_floor() -> None:
    speech = record(burst(start=8000, length=1600, total=16000), seed=0, gain=0.5, noise_lsb=20, multiple_of=16000)
    assert np.abs(speech.samples).max() == pytest.approx(0.3 * 32767, abs=100)
    padding = speech.samples[4000:].astype(float)
    assert padding.std() == pytest.approx(20, rel=0.03)
    assert (speech.samples != 0).mean() > 0.9  # no digital silence


def test_loud_recordings_are_clipped_not_wrapped() -> None:
    speech = record(burst(start=0, length=1600, total=1600), seed=0, gain=3.0)
    middle = speech.samples[:1600]
    assert middle.max() == 32767
    assert middle.min() == -32768
    assert (np.sign(middle) == np.sign(np.cos(np.arange(1600) * 0.3))).mean() > 0.99


def test_same_seed_same_recording(hello: Speech) -> None:
    np.testing.assert_array_equal(record(hello, seed=1).samples, record(hello, seed=1).samples)
    assert (record(hello, seed=1).samples != record(hello, seed=2).samples).any()


def test_silence_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing that can be spoken"):
        record(Speech(np.zeros(1000, dtype=np.int16), 16000, (Phone(0.0, SILENCE),)), seed=0)


def test_punctuation_alone_cannot_be_recorded() -> None:
    with Espeak() as engine, pytest.raises(ValueError, match="nothing that can be spoken"):
        record(engine.speak("..."), seed=0)
