"""The full-size waveform generator: released names and sizes, its source, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram
from megatron_aqaa.vocoder.cosyvoice.hift import HiftConfig, HiftGenerator
from megatron_aqaa.vocoder.cosyvoice.hift_layers import Snake, fold_weight_norm
from megatron_aqaa.vocoder.cosyvoice.hift_source import HarmonicSource
from tests.vocoder.cosyvoice.tiny_hift import CONFIG, hum, tiny_hift


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel + outputs


def normed(inputs: int, outputs: int, kernel: int) -> int:
    return conv(inputs, outputs, kernel) + outputs


def block(channels: int, kernel: int) -> int:
    """Six convolutions and six rates of Snake."""
    return 6 * (normed(channels, channels, kernel) + channels)


def test_full_size_has_the_released_number_of_parameters() -> None:
    ups = sum(inputs * outputs * 16 + outputs + inputs for inputs, outputs in ((512, 256), (256, 128)))
    stages = sum(block(channels, kernel) for channels in (256, 128) for kernel in (3, 7, 11))
    source = conv(18, 256, 16) + block(256, 7) + conv(18, 128, 1) + block(128, 11) + 9 + 1
    pitch = normed(80, 512, 3) + 4 * normed(512, 512, 3) + 512 + 1
    with torch.device("meta"):
        model = HiftGenerator(HiftConfig())
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == normed(80, 512, 7) + ups + stages + source + normed(128, 18, 7) + pitch == 20_460_591


def test_names_and_shapes_are_the_released_ones() -> None:
    """One of each kind, read off FunAudioLLM/CosyVoice."""
    with torch.device("meta"):
        found = {name: tuple(value.shape) for name, value in HiftGenerator(HiftConfig()).state_dict().items()}
    weight = "parametrizations.weight.original"
    expected = {
        "m_source.l_linear.weight": (1, 9),
        f"conv_pre.{weight}0": (512, 1, 1),
        f"conv_pre.{weight}1": (512, 80, 7),
        f"ups.0.{weight}0": (512, 1, 1),
        f"ups.1.{weight}1": (256, 128, 16),
        "source_downs.0.weight": (256, 18, 16),
        "source_downs.1.weight": (128, 18, 1),
        f"source_resblocks.1.convs1.2.{weight}1": (128, 128, 11),
        f"resblocks.5.convs2.0.{weight}1": (128, 128, 11),
        "resblocks.0.activations1.0.alpha": (256,),
        "resblocks.0.activations2.2.alpha": (256,),
        f"conv_post.{weight}1": (18, 128, 7),
        "conv_post.bias": (18,),
        f"f0_predictor.condnet.0.{weight}1": (512, 80, 3),
        f"f0_predictor.condnet.8.{weight}0": (512, 1, 1),
        "f0_predictor.classifier.weight": (1, 512),
    }
    assert expected.items() <= found.items()
    assert len(found) == 227


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(
            CONFIG,
            mel=MelConfig(sample_rate_hz=24000, n_fft=1920, win_length=1920, hop_length=480),
            upsample_rates=(8, 5, 3),
            upsample_kernel_sizes=(16, 11, 7),
            source_kernel_sizes=(7, 7, 11),
        ),
    ],
    ids=["22.05 kHz", "24 kHz"],
)
def test_a_frame_becomes_a_hop(config: HiftConfig) -> None:
    spoken = HiftGenerator(config)(torch.randn(2, 7, 80) - 4)
    assert spoken.waveform.shape == (2, 7 * config.mel.hop_length)
    assert spoken.f0_hz.shape == (2, 7) and (spoken.f0_hz >= 0).all()
    assert spoken.waveform.abs().max() <= 0.99


def harmonics(source: HarmonicSource, f0_hz: torch.Tensor) -> torch.Tensor:
    cycles = torch.cumsum(f0_hz.double() / 22050, dim=-1)
    return source.harmonics(cycles, f0_hz > 10, torch.rand(len(f0_hz), 1, 9))


def test_source_is_silent_where_unvoiced_and_in_tune_where_voiced() -> None:
    source = tiny_hift().m_source
    f0 = torch.zeros(2, 4410)
    f0[:, 1000:] = 210.0  # 20 ms are 4.2 cycles
    waves = harmonics(source, f0)
    assert waves.shape == (2, 4410, 9)
    assert not waves[:, :1000].any()
    expected = 0.1 * torch.sin(2 * torch.pi * 210 / 22050 * torch.arange(1, 3411))
    torch.testing.assert_close(waves[0, 1000:, 0], expected, rtol=0, atol=1e-5)
    for harmonic in range(1, 9):  # a whole number of cycles in 2100 samples
        spectrum = torch.fft.rfft(waves[0, 1000:3100, harmonic]).abs()
        assert int(spectrum.argmax()) == 20 * (harmonic + 1)
    with torch.no_grad():
        source.l_linear.weight.fill_(1.0)
        source.l_linear.bias.zero_()
        quiet, loud = source(f0)[:, :1000].std(), source(f0)[:, 1000:].std()
    assert float(quiet) == pytest.approx(0.1, rel=0.1)  # √9 times a third of .1
    assert loud > 1.5 * quiet


def test_source_stays_in_tune_for_minutes() -> None:
    source = tiny_hift().m_source
    waves = harmonics(source, torch.full((1, 22050 * 60), 147.0))  # 150 samples a cycle
    torch.testing.assert_close(waves[0, -150:, 0], waves[0, :150, 0], rtol=0, atol=1e-6)


def test_snake() -> None:
    """`x + sin²(2 x) / 2` at 0 and π / 4, by hand."""
    snake = Snake(1)
    torch.nn.init.constant_(snake.alpha, 2.0)
    found = snake(torch.tensor([[[0.0, torch.pi / 4]]]))
    torch.testing.assert_close(found, torch.tensor([[[0.0, torch.pi / 4 + 0.5]]]))


def test_folding_changes_nothing_that_is_heard() -> None:
    model, mel = tiny_hift().eval(), torch.randn(1, 6, 80) - 4
    source = torch.randn(1, 6 * 256)
    with torch.no_grad():
        before = model.decode(mel.transpose(1, 2), source)
        fold_weight_norm(model)
        torch.testing.assert_close(model.decode(mel.transpose(1, 2), source), before, rtol=0, atol=1e-6)
    assert not any("parametrizations" in name for name in model.state_dict())
    assert "conv_pre.weight" in model.state_dict()


def test_gradient_reaches_every_parameter() -> None:
    model = tiny_hift()
    spoken = model(torch.randn(2, 8, 80) - 4)
    (spoken.waveform.square().sum() + spoken.f0_hz.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_bf16_keeps_spectra_and_phase_exact() -> None:
    model, mel = tiny_hift().eval(), torch.randn(1, 20, 80, generator=torch.Generator().manual_seed(4)) - 4
    source = harmonics(model.m_source, torch.full((1, 20 * 256), 200.0))[..., 0]
    with torch.no_grad():
        exact = model.decode(mel.transpose(1, 2), source)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.decode(mel.transpose(1, 2), source)
            assert model(mel).f0_hz.dtype == torch.float32
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).norm() / exact.norm()) < 0.05


def test_loud_magnitudes_have_finite_gradients() -> None:
    model = tiny_hift()
    torch.nn.init.constant_(model.conv_post.bias, 200.0)
    model(torch.randn(1, 8, 80)).waveform.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.conv_post.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upsample_rates": (8, 4)}, "make 128 samples of a frame, the mel's hop_length is 256"),
        ({"source_kernel_sizes": (7,)}, "need as many upsample_kernel_sizes and source_kernel_sizes"),
        ({"base_channels": 30}, "cannot be halved 2 times"),
    ],
)
def test_sizes_that_do_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **settings)


@pytest.mark.slow
def test_a_second_of_sound_is_overfitted() -> None:
    """Mel L1 alone, Adam 1e-3: 30 steps halve it (.34 measured)."""
    waveform = hum(22016)
    log_mel = MelSpectrogram(CONFIG.mel)
    mel, model = log_mel(waveform).transpose(1, 2), tiny_hift()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    history = []
    for _ in range(30):
        loss = (log_mel(model(mel).waveform).transpose(1, 2) - mel).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]
