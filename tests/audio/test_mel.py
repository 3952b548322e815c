from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram, mel_bands


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


def naive_log_mel(waveform: np.ndarray, config: MelConfig) -> np.ndarray:
    """The definition, frame by frame, in float64."""
    padding = (config.n_fft - config.hop_length) // 2
    padded = np.pad(waveform, padding, mode="reflect")
    window = np.zeros(config.n_fft)
    left = (config.n_fft - config.win_length) // 2
    n = np.arange(config.win_length)
    window[left : left + config.win_length] = 0.5 - 0.5 * np.cos(2 * math.pi * n / config.win_length)
    bands = mel_bands(config).double().numpy()
    frames = []
    for i in range(len(waveform) // config.hop_length):
        frame = padded[i * config.hop_length :][: config.n_fft] * window
        spectrum = np.sqrt(np.abs(np.fft.rfft(frame)) ** 2 + 1e-9) ** config.power
        frames.append(np.log(np.maximum(bands @ spectrum, config.floor)))
    return np.stack(frames, axis=1)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("preset", [MelConfig.vocoder(), MelConfig.tokenizer()])
@pytest.mark.parametrize("num_samples", [1920, 1920 * 3, 3000])
def test_equals_the_definition(preset: MelConfig, scale: str, num_samples: int) -> None:
    config = MelConfig(**{**vars(preset), "scale": scale})
    waveform = noise(2, num_samples)

    mel = MelSpectrogram(config)(waveform)

    assert mel.shape == (2, config.num_mels, num_samples // config.hop_length)
    for item, expected in zip(mel, waveform, strict=True):
        np.testing.assert_allclose(item.numpy(), naive_log_mel(expected.double().numpy(), config), atol=1e-4)


def test_presets_cover_a_group_of_audio_tokens() -> None:
    assert (MelConfig.vocoder().frame_rate_hz, MelConfig.tokenizer().frame_rate_hz) == (50.0, 100.0)
    assert MelSpectrogram(MelConfig.vocoder())(noise(1, 1920)).shape == (1, 80, 6)
    assert MelSpectrogram(MelConfig.tokenizer())(noise(1, 1920)).shape == (1, 80, 12)


def test_band_edges_by_hand() -> None:
    # htk: equal steps in log(1 + f/700); three bands up to 8 kHz take four steps of the factor (87/7)^(1/4).
    step = (87 / 7) ** 0.25
    htk = mel_bands(MelConfig(num_mels=3, scale="htk", n_fft=16000, win_length=16000))
    assert htk.argmax(1).tolist() == [round(700 * (step**i - 1)) for i in (1, 2, 3)]
    torch.testing.assert_close(htk.amax(1), torch.ones(3), atol=2e-3, rtol=0)
    # slaney: 1 kHz is mel 15, 6.4 kHz mel 42; two bands between them are centred at mel 24 and 33.
    slaney = mel_bands(MelConfig(num_mels=2, n_fft=16000, win_length=16000, f_min_hz=1000, f_max_hz=6400))
    assert slaney.argmax(1).tolist() == [round(1000 * 6.4 ** (9 / 27)), round(1000 * 6.4 ** (18 / 27))]
    torch.testing.assert_close(slaney.sum(1), torch.ones(2), atol=1e-3, rtol=0)  # unit area, bins are 1 Hz apart


def test_a_tone_lights_up_its_band() -> None:
    config = MelConfig.vocoder()
    tone = torch.sin(2 * math.pi * 2000 * torch.arange(16000) / 16000)[None]
    loudest = MelSpectrogram(config)(tone)[0, :, 10:40].argmax(0)
    bands = mel_bands(config)
    assert (bands[loudest, 160] > 0).all()  # bin 160 of 12.5 Hz is 2 kHz
    assert loudest.unique().numel() == 1


def test_silence_is_the_floor_and_has_finite_gradients() -> None:
    waveform = torch.zeros(1, 1920, requires_grad=True)
    mel = MelSpectrogram(MelConfig(floor=1e-2))(waveform)
    assert torch.equal(mel, torch.full_like(mel, math.log(1e-2)))
    MelSpectrogram(MelConfig(floor=1e-9))(waveform).sum().backward()
    assert torch.isfinite(waveform.grad).all()


def test_nothing_is_stored_in_checkpoints() -> None:
    assert not MelSpectrogram(MelConfig()).state_dict()


@pytest.mark.parametrize("shape", [(1920,), (1, 480), (1, 0)])
def test_refuses_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="more than 480 samples"):
        MelSpectrogram(MelConfig.vocoder())(torch.zeros(shape))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"f_max_hz": 9000.0}, "8000.0 Hz"),
        ({"f_min_hz": 8000.0}, "must rise"),
        ({"win_length": 2000}, "must not decrease"),
        ({"hop_length": 321}, "must be even"),
    ],
)
def test_config_refuses(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelConfig(**values)
