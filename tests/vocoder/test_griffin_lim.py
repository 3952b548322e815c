"""A mel that is made audible without a network."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram
from megatron_aqaa.vocoder.cosyvoice.flow_model import WIDE_MEL
from megatron_aqaa.vocoder.griffin_lim import griffin_lim


@pytest.mark.parametrize("config", [WIDE_MEL, MelConfig.vocoder()])
def test_what_is_heard_has_the_mel(config: MelConfig) -> None:
    """A tone that rises, with noise: what comes out has its mel again, and silence in its place would not."""
    time = torch.arange(40 * config.hop_length) / config.sample_rate_hz
    natural = 0.3 * torch.sin(2 * torch.pi * (300 + 400 * time) * time) + 0.01 * torch.randn(len(time))
    log_mel = MelSpectrogram(config)(natural[None])[0].T
    heard = griffin_lim(log_mel, config)
    assert heard.shape == natural.shape
    error = (MelSpectrogram(config)(heard[None])[0].T - log_mel).abs().mean()
    assert error < 0.25
    assert torch.equal(griffin_lim(log_mel, config), heard)
