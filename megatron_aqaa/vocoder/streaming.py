"""Speaking while tokens arrive: whole groups in, waveforms out.

A chunk of groups is decoded together with the groups before it (context) and, where they have arrived, the few after it
(lookahead). Three things tie the chunks to one voice: the frames of the context are those that were spoken, not
drawn again; the pulses go on in phase; and the first samples of a chunk fade over from what its predecessor's lookahead
gave for the same place. Each chunk costs its own length plus context and lookahead, so a stream's cost grows linearly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import torch

from megatron_aqaa.vocoder.acoustic import GroupCodes
from megatron_aqaa.vocoder.excitation import PhaseAnchor, pulse_phase
from megatron_aqaa.vocoder.frames import FRAMES_PER_GROUP, VoiceFrames
from megatron_aqaa.vocoder.group_repair import Group


@dataclass(frozen=True)
class StreamConfig:
    """How a stream is cut; all lengths in groups of 120 ms but the fade.

    Attributes:
        chunk_groups: lengths of the first chunks; the last one holds for all that follow. Growing chunks start soon
            and cost less later (0.6, 0.96, 1.92 s as in the released decoder).
        context_groups: groups before a chunk that are decoded with it.
        lookahead_groups: groups after a chunk that are waited for.
        fade_samples: length of the fade between chunks, at most the lookahead.
    """

    chunk_groups: tuple[int, ...] = (5, 8, 16)
    context_groups: int = 6
    lookahead_groups: int = 2
    fade_samples: int = 320

    def __post_init__(self) -> None:
        if not self.chunk_groups or min(self.chunk_groups) < 1:
            raise ValueError(f"chunk_groups {self.chunk_groups}: needs one length or more, each at least 1")
        if self.context_groups < 1 or self.lookahead_groups < 0 or self.fade_samples < 0:
            raise ValueError("a stream needs context_groups ≥ 1, lookahead_groups ≥ 0 and fade_samples ≥ 0")


class Speaker(Protocol):
    """What makes waveforms of frames."""

    @property
    def config(self) -> Any:
        """Its `mel` says at which rates."""

    def __call__(self, frames: VoiceFrames, noise: torch.Tensor, anchor: PhaseAnchor) -> torch.Tensor:
        """F frames, what `Voice.breath` gives for them, and the phase → [B, N]."""


class Voice(Protocol):
    """What a stream needs of `TokenVocoder` or of the full-size vocoder."""

    @property
    def generator(self) -> Speaker:
        """Frames → waveform."""

    @property
    def samples_per_group(self) -> int:
        """Samples of 120 ms."""

    def codes(self, token_ids: npt.ArrayLike) -> GroupCodes:
        """Codes of merged ids [5 G]; ValueError if they break the group structure."""

    def frames(self, codes: GroupCodes, seed: int, first_group: int = 0) -> VoiceFrames:
        """Frames of codes that begin with group `first_group` of the utterance."""

    def breath(self, groups: range, seed: int) -> torch.Tensor:
        """Noise of the generator for these groups, with a batch of one."""


class SpeechStream:
    """One utterance in the making."""

    def __init__(self, voice: Voice, seed: int, config: StreamConfig) -> None:
        self.voice, self.seed, self.config = voice, seed, config
        self.groups: list[Group] = []  # all that have arrived
        self.spoken = 0  # groups
        self.chunks = 0
        self.context: VoiceFrames | None = None  # frames of the last spoken groups
        self.cycles = 0.0  # phase of the pulses at the next sample
        self.tail = torch.zeros(0)  # the last chunk's idea of the next samples

    def run(self, groups: Iterable[Group]) -> Iterator[torch.Tensor]:
        """See `TokenVocoder.stream`."""
        for group in groups:
            self.groups.append(group)
            if len(self.groups) >= self.spoken + self._chunk_length() + self.config.lookahead_groups:
                yield self._speak(self._chunk_length())
        while self.spoken < len(self.groups):
            yield self._speak(min(self._chunk_length(), len(self.groups) - self.spoken))

    def _chunk_length(self) -> int:
        lengths = self.config.chunk_groups
        return lengths[min(self.chunks, len(lengths) - 1)]

    @torch.inference_mode()
    def _speak(self, length: int) -> torch.Tensor:
        """The next `length` groups."""
        first = max(0, self.spoken - self.config.context_groups)
        stop = self.spoken + length
        last = min(len(self.groups), stop + self.config.lookahead_groups)
        frames = self._frames(first, last)
        anchor = PhaseAnchor((self.spoken - first) * FRAMES_PER_GROUP, self.cycles)
        decoded = self.voice.generator(frames, self.voice.breath(range(first, last), self.seed), anchor)[0].cpu()
        waveform, tail = self._split(decoded, self.spoken - first, length)
        waveform = _fade(self.tail, waveform)
        self._advance(frames, anchor, first, stop)
        self.tail = tail
        return waveform

    def _frames(self, first: int, last: int) -> VoiceFrames:
        """Frames of groups `first … last − 1`; those already spoken are kept."""
        frames = self.voice.frames(self._codes(first, last), self.seed, first)
        if self.context is None:
            return frames
        return self.context.join(frames.slice(self.context.mel.shape[1], frames.mel.shape[1]))

    def _codes(self, first: int, last: int) -> GroupCodes:
        return self.voice.codes([token_id for group in self.groups[first:last] for token_id in group])

    def _kept(self, frames: VoiceFrames, start: int, stop: int) -> VoiceFrames:
        """What the next chunk goes on from, if frames `start … stop − 1` are the context of it."""
        return frames.slice(start, stop)

    def _split(self, decoded: torch.Tensor, context: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The chunk's own samples, and those after it that the next chunk fades from."""
        start, stop = (groups * self.voice.samples_per_group for groups in (context, context + length))
        return decoded[start:stop], decoded[stop : stop + self.config.fade_samples]

    def _advance(self, frames: VoiceFrames, anchor: PhaseAnchor, first: int, stop: int) -> None:
        mel = self.voice.generator.config.mel
        end = (stop - first) * FRAMES_PER_GROUP
        phase = pulse_phase(frames.octaves, mel.hop_length, mel.sample_rate_hz, anchor)
        self.cycles = float(phase[0, end * mel.hop_length] % 1.0)
        self.spoken, self.chunks = stop, self.chunks + 1
        kept = min(stop, self.config.context_groups) * FRAMES_PER_GROUP
        self.context = self._kept(frames, end - kept, end)


def _fade(before: torch.Tensor, waveform: torch.Tensor) -> torch.Tensor:
    """`waveform`, its first samples faded over from `before`."""
    length = min(len(before), len(waveform))
    if not length:
        return waveform
    weight = torch.sin(torch.linspace(0, torch.pi / 2, length)).square()
    mixed = (1 - weight) * before[:length] + weight * waveform[:length]
    return torch.cat((mixed, waveform[length:]))
