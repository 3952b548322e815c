"""Kaldi's filter bank, against kaldi_native_fbank and a frame computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_aqaa.audio.kaldi_fbank import KaldiFilterBank, num_frames


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tone = torch.sin(torch.arange(num_samples) * 0.2)
    return 0.1 * torch.randn(num_samples, generator=generator) + 0.3 * tone + 0.05


@pytest.mark.parametrize("num_samples", [400, 559, 560, 16000, 40001])
def test_equals_kaldi(num_samples: int) -> None:
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither, options.frame_opts.window_type = 0.0, "hamming"
    options.frame_opts.samp_freq, options.mel_opts.num_bins = 16000.0, 80
    options.energy_floor = 0.0
    kaldi = knf.OnlineFbank(options)
    waveform = noise(num_samples)
    kaldi.accept_waveform(16000, (waveform * 32768).tolist())
    kaldi.input_finished()
    expected = torch.stack([torch.from_numpy(kaldi.get_frame(i)) for i in range(kaldi.num_frames_ready)])
    ours = KaldiFilterBank()(waveform[None])[0]
    assert len(ours) == num_frames(num_samples)
    exact = KaldiFilterBank().double()(waveform.double()[None])[0]
    assert float((expected - exact).abs().max()) < 1e-3  # the same definition; 3e-4 seen where little energy is left
    assert float((ours - exact).abs().max()) <= 2 * float((expected - exact).abs().max())


def test_a_frame_by_hand() -> None:
    waveform, position, band = noise(1000, seed=3), 2, 17
    samples = [32768 * float(x) for x in waveform[position * 160 : position * 160 + 400]]
    mean = sum(samples) / 400
    centred = [x - mean for x in samples]
    emphasised = [centred[i] - 0.97 * centred[max(i - 1, 0)] for i in range(400)]
    windowed = [x * (0.54 - 0.46 * math.cos(2 * math.pi * i / 399)) for i, x in enumerate(emphasised)]
    mel = lambda hz: 1127 * math.log(1 + hz / 700)
    width = (mel(8000) - mel(20)) / 81
    left = mel(20) + band * width
    energy = 0.0
    for k in range(256):
        place = (mel(k * 31.25) - left) / width
        height = max(0.0, min(place, 2 - place))
        if height:
            real = sum(x * math.cos(2 * math.pi * k * i / 512) for i, x in enumerate(windowed))
            imaginary = sum(x * math.sin(2 * math.pi * k * i / 512) for i, x in enumerate(windowed))
            energy += height * (real**2 + imaginary**2)
    assert float(KaldiFilterBank()(waveform[None])[0, position, band]) == pytest.approx(math.log(energy), abs=1e-4)


def test_batches_and_silence() -> None:
    bank = KaldiFilterBank()
    both = torch.stack((noise(4000, 1), torch.zeros(4000)))
    torch.testing.assert_close(bank(both)[0], bank(both[:1])[0])
    assert torch.equal(bank(both)[1], torch.full((23, 80), math.log(torch.finfo(torch.float32).eps)))


def test_too_short() -> None:
    assert num_frames(399) == 0
    with pytest.raises(ValueError, match="at least 400 samples, found"):
        KaldiFilterBank()(torch.zeros(1, 399))
