"""Analysis of natural speech into frames."""

from __future__ import annotations

import torch

from megatron_aqaa.vocoder.frames import FrameAnalysis, VoiceFrames, hold_unvoiced


def test_holds_the_last_voiced_value():
    octaves = torch.tensor([[9.0, 9, 1, 2, 9, 9, 3, 9], [9.0] * 8])
    voiced = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 0], [0] * 8]).bool()
    assert hold_unvoiced(octaves, voiced).tolist() == [[1, 1, 1, 2, 2, 2, 3, 3], [0.0] * 8]


def test_finds_pitch_and_voicing_of_a_tone_after_silence():
    time_s = torch.arange(9600) / 16000
    tone = sum(torch.sin(2 * torch.pi * 300 * k * time_s) for k in range(1, 6)) * 0.1
    frames = FrameAnalysis()(torch.cat((torch.zeros(6400), tone))[None])
    assert frames.mel.shape == (1, 50, 80) and frames.octaves.shape == frames.voiced.shape == (1, 50)
    assert frames.voiced[0, :18].sum() == 0 and frames.voiced[0, 22:48].all()
    torch.testing.assert_close(frames.octaves[0, 22:48], torch.ones(26), rtol=0, atol=0.01)  # 300 Hz over 150 Hz


def test_slice_and_join_undo_each_other():
    frames = VoiceFrames(torch.randn(2, 10, 3), torch.randn(2, 10), torch.ones(2, 10))
    joined = frames.slice(0, 4).join(frames.slice(4, 10))
    assert all(torch.equal(a, b) for a, b in zip(joined, frames, strict=True))
