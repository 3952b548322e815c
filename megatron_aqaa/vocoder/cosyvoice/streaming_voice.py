"""The full-size vocoder as a stream speaks with it: in the form of 24 kHz, where a group is six frames.

What a stream needs beyond the networks is that noise and phase belong to a place in the utterance: then chunks that are
spoken one by one join into one voice.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy.typing as npt
import torch
from torch import Tensor

from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.acoustic import GroupCodes
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig, FlowModel
from megatron_aqaa.vocoder.cosyvoice.flow_sampling import FlowSampling
from megatron_aqaa.vocoder.cosyvoice.hift import HiftGenerator
from megatron_aqaa.vocoder.cosyvoice.spoken_tokens import SpokenTokens
from megatron_aqaa.vocoder.cosyvoice.token_ids import POSITIONS_PER_GROUP, group_codes, in_columns
from megatron_aqaa.vocoder.excitation import PhaseAnchor, pulse_phase
from megatron_aqaa.vocoder.frames import FRAMES_PER_GROUP, PITCH_REFERENCE_HZ, VoiceFrames, hold_unvoiced

_MIN_F0_HZ = 1.0  # of an unvoiced frame, so that its logarithm is finite; it is not heard


def can_stream(config: FlowConfig) -> bool:
    """Whether a group is a whole number of frames, the one that streams are cut by."""
    frames = POSITIONS_PER_GROUP[config.token_form] * config.frames_per_token
    return config.token_form == "columns" and abs(frames - FRAMES_PER_GROUP) < 1e-6


class PhasedGenerator:
    """A HiFT generator whose source is given its phase, so that the harmonics of one chunk go on in the next."""

    def __init__(self, hift: HiftGenerator) -> None:
        self.hift, self.config = hift, hift.config
        count = self.config.num_harmonics + 1
        self.start = (torch.arange(count) * 0.618034 % 1).view(1, 1, count)  # harmonics in phase would make a click

    def __call__(self, frames: VoiceFrames, noise: Tensor, anchor: PhaseAnchor) -> Tensor:
        """Speak.

        Args:
            frames: F frames.
            noise: [B, N, 1 + num_harmonics] of the source.
            anchor: phase of the source.

        Returns:
            [B, N], N = F · hop_length.
        """
        return self.hift.decode(frames.mel.transpose(1, 2), self.source(frames, noise, anchor)).float()

    def source(self, frames: VoiceFrames, noise: Tensor, anchor: PhaseAnchor) -> Tensor:
        """[B, N]; see `__call__`."""
        mel = self.config.mel
        cycles = pulse_phase(frames.octaves, mel.hop_length, mel.sample_rate_hz, anchor)[:, :-1]
        voiced = frames.voiced.bool().repeat_interleave(mel.hop_length, dim=1)
        return self.hift.m_source.mixed(cycles, voiced, self.start.to(cycles.device), noise)


class StreamingVoice:
    """See `streaming.Voice`.

    Args:
        flow_model: tokens → mel; must fit `can_stream`.
        hift: mel → waveform.
        vocabulary: layout of the token ids.
        sampling: how mel is drawn.
    """

    def __init__(
        self, flow_model: FlowModel, hift: HiftGenerator, vocabulary: Vocabulary, sampling: FlowSampling
    ) -> None:
        assert can_stream(flow_model.config), "a stream needs six frames a group"
        self.flow_model, self.generator = flow_model, PhasedGenerator(hift)
        self.vocabulary, self.sampling = vocabulary, sampling

    @property
    def samples_per_group(self) -> int:
        """Samples of 120 ms."""
        return FRAMES_PER_GROUP * self.generator.config.mel.hop_length

    def codes(self, token_ids: npt.ArrayLike) -> GroupCodes:
        """Codes of merged ids [5 G]; ValueError if they break the group structure."""
        device = self.generator.hift.window.device
        return GroupCodes(*(part[None].to(device) for part in group_codes(token_ids, self.vocabulary)))

    def frames(
        self, codes: GroupCodes, seed: int, first_group: int = 0, prompt: SpokenTokens | None = None
    ) -> VoiceFrames:
        """Frames of codes that begin with group `first_group` of the utterance, drawn in one chunk."""
        return self.heard(self.mel(codes, seed, first_group, prompt=prompt))

    def mel(
        self,
        codes: GroupCodes,
        seed: int,
        first_group: int = 0,
        edges: tuple[int, ...] = (),
        prompt: SpokenTokens | None = None,
    ) -> Tensor:
        """Mel of codes.

        Args:
            codes: they begin with group `first_group` of the utterance.
            seed: of the noise.
            first_group: see `codes`.
            edges: groups of `codes` at which chunks begin.
            prompt: voice to speak with; its groups have the numbers before 0.

        Returns:
            [1, F, M], without the prompt's frames.
        """
        positions = POSITIONS_PER_GROUP["columns"]
        before = len(prompt.tokens) // positions if prompt else 0
        groups = [*range(-before, 0), *range(first_group, first_group + codes.linguistic.shape[1])]
        noise = self._noise(2 * seed, groups, FRAMES_PER_GROUP, self.flow_model.config.mel.num_mels)
        starts = tuple(positions * edge for edge in edges)
        return self.sampling.draw(self.flow_model, in_columns(*codes), noise, starts, prompt)

    def heard(self, mel: Tensor) -> VoiceFrames:
        """Mel [1, F, M] with the pitch that the generator takes it to have."""
        f0_hz = self.generator.hift.f0_predictor(mel.transpose(1, 2)).float()
        voiced = f0_hz > self.generator.config.voiced_threshold_hz
        octaves = torch.log2(f0_hz.clamp(min=_MIN_F0_HZ) / PITCH_REFERENCE_HZ)
        return VoiceFrames(mel, hold_unvoiced(octaves, voiced), voiced.float())

    def breath(self, groups: range, seed: int) -> Tensor:
        """Noise of the source, [1, N, 1 + num_harmonics]."""
        return self._noise(2 * seed + 1, groups, self.samples_per_group, self.generator.config.num_harmonics + 1)

    def _noise(self, seed: int, groups: Iterable[int], rows: int, columns: int) -> Tensor:
        """Standard normal values for each group, by its number alone, joined: [1, rows · groups, columns]."""
        parts = []
        for group in groups:
            source = torch.Generator().manual_seed(seed * 1_000_003 + group)
            parts.append(torch.randn(rows, columns, generator=source))
        return torch.cat(parts)[None].to(self.generator.hift.window.device)
