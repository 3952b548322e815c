"""What a new user throws at it: other formats and rates work, the rest gets an error that says what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from megatron_aqaa.audio.io import RESAMPLER, AudioError
from megatron_aqaa.data.finished import finish
from megatron_aqaa.inference.answerer import SpokenAnswerer
from megatron_aqaa.inference.question import check_training_resampler, load_question
from tests.inference.tiny_run import make_run

TONE = 0.5 * np.sin(2 * np.pi * 300 * np.arange(48_000) / 48_000)  # one second at 48 kHz


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_stereo_at_another_rate_in_any_format(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"question{suffix}", np.stack([TONE, TONE], 1), 48_000)
    waveform = load_question(tmp_path / f"question{suffix}")
    assert waveform.dtype == torch.float32
    assert abs(len(waveform) - 16_000) < 1_000  # mp3 pads
    crossings = int((waveform[1000:-2000] > 0).int().diff().abs().sum())
    assert crossings == pytest.approx(600 * (len(waveform) - 3000) / 16_000, abs=6)


def test_thirty_seconds_pass_and_more_is_refused_with_a_remedy(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 8_000 * 31)
    soundfile.write(tmp_path / "long.wav", noise, 8_000)
    with pytest.raises(AudioError, match=r"long\.wav: lasts 31\.0 s; a question may last 30 s.*ffmpeg -t 30"):
        load_question(tmp_path / "long.wav")
    soundfile.write(tmp_path / "just.wav", noise[: 8_000 * 30], 8_000)
    assert len(load_question(tmp_path / "just.wav")) == 16_000 * 30


@pytest.mark.parametrize(("level", "said"), [(0.0, "silence only"), (0.001, "silence only")])
def test_silence_is_refused(tmp_path: Path, level: float, said: str) -> None:
    soundfile.write(tmp_path / "quiet.wav", level * TONE, 48_000)
    with pytest.raises(AudioError, match=said):
        load_question(tmp_path / "quiet.wav")


def test_a_quiet_voice_is_not_silence(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "quiet.wav", 0.02 * TONE, 48_000)
    assert len(load_question(tmp_path / "quiet.wav")) == 16_000


def test_a_click_is_too_short(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "click.wav", TONE[:4_800], 48_000)
    with pytest.raises(AudioError, match=r"100 ms.*too short"):
        load_question(tmp_path / "click.wav")


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"nowhere\.wav: no such file"):
        load_question(tmp_path / "nowhere.wav")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match="empty"):
        load_question(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("this is no sound at all")
    with pytest.raises(AudioError, match="not readable"):
        load_question(tmp_path / "text.wav")


def trained_on(run: Path, notes: dict[str, dict[str, str]]) -> Path:
    """The `config.yaml` of a run that was trained on data sets with these notes."""
    for name, note in notes.items():
        finish(run / "data" / name, "digest", {"documents": 0, **note})
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump({"data": {"directory": str(run / "data"), "train": dict.fromkeys(notes, 1.0)}}))
    return path


def test_another_resampler_than_in_training_is_told(tmp_path: Path) -> None:
    notes = {"a": {"resampler": RESAMPLER}, "b": {"resampler": "libsamplerate 0"}, "c": {}}
    path = trained_on(tmp_path, notes)
    with pytest.warns(UserWarning, match=f"'libsamplerate 0'; questions here pass through '{RESAMPLER}'"):
        check_training_resampler(path)


def test_the_resampler_of_training_passes(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    check_training_resampler(trained_on(tmp_path, {"a": {"resampler": RESAMPLER}, "b": {}}))
    assert not recwarn.list


def test_an_answerer_looks_at_the_resampler_of_its_model(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    config = yaml.safe_load((run / "sft" / "config.yaml").read_text())
    other = trained_on(tmp_path / "other", {"a": {"resampler": "libsamplerate 0"}})
    (run / "sft" / "config.yaml").write_text(yaml.safe_dump(config | yaml.safe_load(other.read_text())))
    with pytest.warns(UserWarning, match="libsamplerate 0"), SpokenAnswerer.load(run) as answerer:
        assert answerer.vocabulary.size > 0
