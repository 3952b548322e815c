"""The pulse train against a sum of cosines, and its joins."""

from __future__ import annotations

import math

import torch

from megatron_aqaa.vocoder.excitation import PhaseAnchor, pulse_phase, pulse_train

HOP, RATE = 320, 16000


def octaves(*f0_hz: float) -> torch.Tensor:
    return torch.log2(torch.tensor([f0_hz]) / 150)


def test_equals_a_sum_of_cosines():
    f0_hz, frames = 190.0, 4
    pulses = pulse_train(octaves(*[f0_hz] * frames), torch.ones(1, frames), HOP, RATE)
    harmonics = int(RATE / 2 / f0_hz)
    time_s = torch.arange(frames * HOP, dtype=torch.float64) / RATE
    naive = sum(torch.cos(2 * math.pi * k * f0_hz * time_s) for k in range(1, harmonics + 1)) / math.sqrt(harmonics / 2)
    torch.testing.assert_close(pulses.waveform[0].double(), naive, rtol=0, atol=2e-3)


def test_power_does_not_depend_on_the_pitch():
    for f0_hz in (81.0, 151.0, 251.0, 401.0):
        waveform = pulse_train(octaves(*[f0_hz] * 50), torch.ones(1, 50), HOP, RATE).waveform
        assert 0.97 < float(waveform.square().mean()) < 1.03


def test_silent_where_unvoiced():
    voiced = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0]])
    pulses = pulse_train(octaves(*[150] * 7), voiced, HOP, RATE)
    assert pulses.waveform[0, 4 * HOP :].abs().max() == 0
    assert pulses.voicing.min() == 0 and pulses.voicing.max() == 1


def test_an_anchored_stretch_goes_on_in_phase():
    """Frames 2 … 7 of a melody, tied at frame 4, give the melody's own samples from frame 4 on."""
    melody, voiced = octaves(120, 130, 150, 180, 200, 190, 160, 150), torch.ones(1, 8)
    whole = pulse_train(melody, voiced, HOP, RATE).waveform
    cycles = float(pulse_phase(melody, HOP, RATE)[0, 4 * HOP] % 1)
    part = pulse_train(melody[:, 2:], voiced[:, 2:], HOP, RATE, PhaseAnchor(2, cycles)).waveform
    torch.testing.assert_close(part[:, 2 * HOP :], whole[:, 4 * HOP :], rtol=0, atol=2e-3)


def test_phase_counts_the_cycles():
    phase = pulse_phase(octaves(*[200] * 50), HOP, RATE)
    assert phase.shape == (1, 50 * HOP + 1)
    torch.testing.assert_close(phase[0, -1], torch.tensor(200.0, dtype=torch.float64), rtol=0, atol=1e-4)  # one second
