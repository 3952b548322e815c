from __future__ import annotations

import os
import sys
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from megatron_aqaa.audio.espeak import SILENCE, Espeak, SpeechEngineError


def test_phones_of_a_word_in_order() -> None:
    with Espeak() as engine:
        speech = engine.speak("sun")
    assert [phone.symbol for phone in speech.phones] == [SILENCE, "s", "'V", "n", SILENCE]
    starts_s = [phone.start_s for phone in speech.phones]
    assert starts_s[0] == 0.0
    assert starts_s == sorted(starts_s)
    assert starts_s[-1] < len(speech.samples) / speech.sample_rate_hz
    assert speech.samples.dtype == np.int16


def test_phone_times_fit_the_sound() -> None:
    """The hiss of "s" crosses zero far more often than the vowel."""
    with Espeak() as engine:
        speech = engine.speak("sun", "en-us+m3")
    start_s = {phone.symbol: phone.start_s for phone in speech.phones}

    def crossings(first: str, next_: str) -> float:
        samples = speech.samples[round(start_s[first] * 22050) : round(start_s[next_] * 22050)].astype(float)
        return float(np.mean(np.diff(np.sign(samples)) != 0))

    assert crossings("s", "'V") > 3 * crossings("'V", "n")


def test_an_engine_depends_on_nothing_but_its_seed_and_its_own_past() -> None:
    with Espeak(seed=3) as first, Espeak(seed=3) as second:
        alone = [first.speak(text).samples for text in ("one", "two", "one")]
        mixed = []
        with Espeak(seed=9) as other:
            for text in ("one", "two", "one"):
                mixed.append(second.speak(text).samples)
                other.speak("something else", "en-us+whisper", 220, 90)
    for a, b in zip(alone, mixed, strict=True):
        np.testing.assert_array_equal(a, b)
    # What makes the private copies necessary: the library does not say the same thing twice alike.
    assert len(alone[0]) != len(alone[2]) or (alone[0] != alone[2]).any()


def test_rate_and_pitch_change_the_voice() -> None:
    with Espeak() as engine:
        slow, quick = (engine.speak("the capital of france", rate_wpm=rate).samples for rate in (110, 230))
    assert len(slow) > 1.4 * len(quick)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_text(text: str) -> None:
    with Espeak() as engine, pytest.raises(ValueError, match="empty"):
        engine.speak(text)


@pytest.mark.parametrize(("voice", "message"), [("en-us+nobody", "no variant 'nobody'"), ("xx-yy+f2", "no such lang")])
def test_unknown_voices(voice: str, message: str) -> None:
    with Espeak() as engine, pytest.raises(ValueError, match=message):
        engine.speak("hello", voice)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(SpeechEngineError, match="pip install espeakng-loader"):
        Espeak()


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(espeakng_loader, "get_library_path", lambda: str(tmp_path / "gone.so"))
    with pytest.raises(SpeechEngineError, match=r"gone\.so is missing.*force-reinstall"):
        Espeak()


def test_data_may_lie_deeper_than_the_library_can_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    os.symlink(espeakng_loader.get_data_path(), deep / "espeak-ng-data")
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(deep / "espeak-ng-data"))
    with Espeak() as engine:
        assert len(engine.speak("hello").samples) > 10000
