from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from megatron_aqaa.audio.io import AudioError, duration_s, load_waveform, normalize_peak, read_blocks, save_waveform


def tone(rate_hz: int, duration_s: float = 0.5, frequency_hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * math.pi * frequency_hz * np.arange(round(rate_hz * duration_s)) / rate_hz)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_any_format_and_rate_gives_the_same_tone(tmp_path: Path, suffix: str, rate_hz: int) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([tone(rate_hz), tone(rate_hz)], axis=1), rate_hz)

    waveform = load_waveform(path)

    assert waveform.dtype == torch.float32
    assert waveform.ndim == 1
    assert abs(len(waveform) - 8000) <= (2 * 1152 if suffix == "mp3" else 1)  # mp3 pads to whole frames
    middle = waveform[2000:6000]
    spectrum = torch.fft.rfft(middle * torch.hann_window(4000)).abs()
    assert int(spectrum.argmax()) == 110  # 440 Hz in steps of 4 Hz
    assert float(middle.abs().max()) == pytest.approx(0.5, abs=0.03)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = np.linspace(-0.5, 0.5, 1000), np.full(1000, 0.25)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")

    waveform = load_waveform(tmp_path / "stereo.wav")

    torch.testing.assert_close(waveform, torch.from_numpy((left + right) / 2).float())


def test_another_target_rate(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(16000), 16000)
    assert len(load_waveform(tmp_path / "tone.wav", sample_rate_hz=24000)) == 12000


def test_save_then_load_keeps_16_bits(tmp_path: Path) -> None:
    waveform = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name in ("a.wav", "folder/b.flac"):
        save_waveform(waveform, tmp_path / name)
        torch.testing.assert_close(load_waveform(tmp_path / name), waveform, atol=1.1 / 32768, rtol=0)


def test_save_clips(tmp_path: Path) -> None:
    save_waveform(torch.tensor([-3.0, 0.0, 3.0]), tmp_path / "loud.wav")
    torch.testing.assert_close(
        load_waveform(tmp_path / "loud.wav"), torch.tensor([-1.0, 0.0, 1.0]), atol=2 / 32768, rtol=0
    )


def write_missing(path: Path) -> None:
    pass


def write_folder(path: Path) -> None:
    path.mkdir()


def write_no_bytes(path: Path) -> None:
    path.touch()


def write_text(path: Path) -> None:
    path.write_text("this is no recording")


def write_no_samples(path: Path) -> None:
    soundfile.write(path, np.zeros(0), 16000)


def write_nan(path: Path) -> None:
    soundfile.write(path, np.array([0.0, np.nan]), 16000, subtype="FLOAT")


def write_too_little(path: Path) -> None:
    soundfile.write(path, np.zeros(1), 192000)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_missing, "no such file"),
        (write_folder, "is a folder"),
        (write_no_bytes, "is empty"),
        (write_text, "ffmpeg -i x.wav"),
        (write_no_samples, "no samples"),
        (write_nan, "NaN"),
        (write_too_little, "leave nothing"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, write, message: str) -> None:
    path = tmp_path / "x.wav"
    write(path)
    with pytest.raises(AudioError, match=message) as caught:
        load_waveform(path)
    assert str(path) in str(caught.value)


def write_cut_wav(path: Path) -> None:
    soundfile.write(path, tone(16000), 16000)
    path.write_bytes(path.read_bytes()[:5000])


def write_pipe(path: Path) -> None:
    os.mkfifo(path)


def write_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_cut_wav, "truncated: 4956 of 16000 bytes"),
        (write_pipe, "not a regular file"),
        (write_loop, "cannot be opened"),
    ],
)
def test_files_that_would_mislead_or_hang(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path / "x.wav")
    with pytest.raises(AudioError, match=message):
        load_waveform(tmp_path / "x.wav")


def test_cut_flac_is_no_shorter_recording(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 48_000), 16000)
    content = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match=r"cut.flac: (truncated|not readable)"):
        load_waveform(tmp_path / "cut.flac")


def test_wav_of_unknown_length_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(16000), 16000)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    content[40:44] = content[4:8] = b"\xff" * 4  # as ffmpeg writes it into a pipe
    (tmp_path / "x.wav").write_bytes(content)
    assert len(load_waveform(tmp_path / "x.wav")) == 8000


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    with path.open("wb") as file:
        soundfile.write(file, tone(16000), 16000, format="WAV")
    assert len(load_waveform(path)) == 8000


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_blocks_joined_are_the_whole(tmp_path: Path, channels: int, rate_hz: int) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (rate_hz * 2 + 7, channels))
    soundfile.write(tmp_path / "x.wav", noise, rate_hz)
    blocks = list(read_blocks(tmp_path / "x.wav", block_s=0.3))
    assert len(blocks) >= 7
    assert torch.equal(torch.cat(blocks), load_waveform(tmp_path / "x.wav"))
    mono = noise.mean(1).astype(np.float32)
    expected = mono if rate_hz == 16000 else soxr.resample(mono, rate_hz, 16000)
    assert torch.cat(blocks).numpy() == pytest.approx(expected, abs=1e-4)


def test_opus_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.opus", tone(48000), 48000, format="OGG", subtype="OPUS")
    assert abs(len(load_waveform(tmp_path / "x.opus")) - 8000) <= 400


def test_upsampling_is_said(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(8000), 8000)
    with pytest.warns(UserWarning, match="recordings at 8000 Hz .* nothing above 4000 Hz"):
        load_waveform(tmp_path / "x.wav")


def test_duration_by_the_header(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.flac", tone(44100), 44100)
    assert duration_s(tmp_path / "x.flac") == pytest.approx(0.5)
    with pytest.raises(AudioError, match="no such file"):
        duration_s(tmp_path / "y.flac")


@pytest.mark.parametrize(
    ("waveform", "name", "message"),
    [
        (torch.zeros(2, 10), "x.wav", "mono"),
        (torch.tensor([0.0, torch.nan]), "x.wav", "NaN"),
        (torch.zeros(10), "x.mp3", "wav or .flac"),
        (torch.zeros(10), "x", "no suffix"),
    ],
)
def test_save_refuses(tmp_path: Path, waveform: torch.Tensor, name: str, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        save_waveform(waveform, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_save_into_a_file_as_if_it_were_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AudioError, match="cannot be written"):
        save_waveform(torch.zeros(10), tmp_path / "file" / "x.wav")


def test_normalize_peak() -> None:
    waveform = torch.tensor([0.1, -0.5, 0.25])
    torch.testing.assert_close(normalize_peak(waveform), waveform / 0.5 * 0.999)
    # Near-silence: the gain stays that of a peak of 0.01.
    torch.testing.assert_close(normalize_peak(torch.tensor([0.001])), torch.tensor([0.0999]))
    assert normalize_peak(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(AudioError, match="empty"):
        normalize_peak(torch.zeros(0))
