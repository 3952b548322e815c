"""What passes from the acoustic model to the waveform generator: mel, pitch and voicing, 50 frames a second."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram
from megatron_aqaa.audio.pitch import PitchConfig, estimate_pitch

FRAMES_PER_GROUP = 6  # 120 ms, one group of 2 linguistic + 3 semantic codes
PITCH_REFERENCE_HZ = 150.0


class VoiceFrames(NamedTuple):
    """A spoken stretch as the generator is told of it.

    Attributes:
        mel: [B, F, M] float32, natural logarithm.
        octaves: [B, F] float32, log2 of F0 over `PITCH_REFERENCE_HZ`; goes on through unvoiced frames.
        voiced: [B, F] float32, 1 voiced, 0 unvoiced.
    """

    mel: torch.Tensor
    octaves: torch.Tensor
    voiced: torch.Tensor

    def slice(self, start: int, stop: int) -> VoiceFrames:
        """Frames `start … stop − 1`."""
        return VoiceFrames(*(field[:, start:stop] for field in self))

    def join(self, following: VoiceFrames) -> VoiceFrames:
        """These frames, then `following`."""
        return VoiceFrames(*(torch.cat(pair, dim=1) for pair in zip(self, following, strict=True)))


class FrameAnalysis(nn.Module):
    """Natural speech → `VoiceFrames`: what both networks are trained on."""

    def __init__(self, mel: MelConfig | None = None) -> None:
        super().__init__()
        self.log_mel = MelSpectrogram(mel or MelConfig.vocoder())
        config = self.log_mel.config
        self.pitch = PitchConfig(sample_rate_hz=config.sample_rate_hz, hop_length=config.hop_length)

    @torch.no_grad()
    def forward(self, waveform: torch.Tensor) -> VoiceFrames:
        """Samples `waveform [B, N]` → F = N // hop_length frames."""
        pitch = estimate_pitch(waveform, self.pitch)
        octaves = torch.log2(pitch.f0_hz / PITCH_REFERENCE_HZ)
        return VoiceFrames(
            self.log_mel(waveform).transpose(1, 2), hold_unvoiced(octaves, pitch.voiced), pitch.voiced.float()
        )


def hold_unvoiced(octaves: torch.Tensor, voiced: torch.Tensor) -> torch.Tensor:
    """The last voiced value in every unvoiced frame, the first one before it; zeros where nothing is voiced: [B, F]."""
    index = torch.arange(octaves.shape[1], device=octaves.device).expand_as(octaves)
    last = torch.where(voiced, index, -1).cummax(dim=1).values
    first = voiced.int().argmax(dim=1, keepdim=True)  # 0 if none is voiced
    held = octaves.gather(1, torch.where(last >= 0, last, first))
    return torch.where(voiced.any(dim=1, keepdim=True), held, 0.0)
