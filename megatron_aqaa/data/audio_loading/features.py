"""Features of many waveforms at once, in batches as large as is fastest on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from megatron_aqaa.audio import kaldi_fbank, whisper_mel
from megatron_aqaa.audio.kaldi_fbank import KaldiFilterBank
from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram
from megatron_aqaa.audio.whisper_mel import WhisperMel

_JOINT_S = 8.0
"""Sound that is transformed together. Recordings of 0.5 s take 0.8 times as long eight at a time as alone; of more than
30 s together, all take up to three times as long, because their spectra leave the cache (one core, 2026-11)."""


@dataclass(frozen=True)
class Features:
    """What a batch holds.

    Attributes:
        kind: "waveform"; "log_mel", as `mel` says; "whisper", Whisper's log-mel; "kaldi", Paraformer's filter bank.
        mel: Settings of "log_mel".
        num_mels: Bands of "whisper" and "kaldi".
    """

    kind: Literal["waveform", "log_mel", "whisper", "kaldi"] = "waveform"
    mel: MelConfig = MelConfig.tokenizer()
    num_mels: int = 80

    def check_rate(self, sample_rate_hz: int) -> None:
        """Raises ValueError if the features are not of this rate."""
        wanted = {"waveform": sample_rate_hz, "log_mel": self.mel.sample_rate_hz}.get(self.kind, 16000)
        if wanted != sample_rate_hz:
            raise ValueError(f"sample_rate_hz {sample_rate_hz}, but {self.kind} is computed at {wanted} Hz")

    @property
    def min_samples(self) -> int:
        """Shortest waveform that has features."""
        if self.kind == "log_mel":
            return max(self.mel.hop_length, (self.mel.n_fft - self.mel.hop_length) // 2 + 1)
        return {"waveform": 1, "whisper": whisper_mel.N_FFT // 2 + 1, "kaldi": kaldi_fbank.WINDOW_LENGTH}[self.kind]

    def num_frames(self, num_samples: int) -> int:
        """Frames of so many samples, at least `min_samples`; of "waveform" the samples themselves."""
        if self.kind == "kaldi":
            return kaldi_fbank.num_frames(num_samples)
        hop = {"waveform": 1, "log_mel": self.mel.hop_length, "whisper": whisper_mel.HOP_LENGTH}[self.kind]
        return num_samples // hop


class Padded(NamedTuple):
    """Features of some recordings.

    Attributes:
        values: [B, F, M] float32, or waveforms [B, N]; zeros behind the end of each.
        lengths: [B] int64, frames or samples.
    """

    values: Tensor
    lengths: Tensor


class FeatureExtractor:
    """Waveforms → features, as `Features` says; on the device of the waveforms.

    Args:
        features: The settings.
        sample_rate_hz: Of the waveforms.
        device: Where they are.
    """

    def __init__(self, features: Features, sample_rate_hz: int, device: torch.device | str = "cpu") -> None:
        self.features = features
        self.joint_samples = _JOINT_S * sample_rate_hz if torch.device(device).type == "cpu" else math.inf
        self.network = None if features.kind == "waveform" else _network(features).to(device)

    @torch.no_grad()  # not inference_mode: what that makes cannot be trained on
    def __call__(self, waveforms: Sequence[Tensor]) -> Padded:
        """Features of waveforms [N], each with at least `features.min_samples`."""
        lengths = torch.tensor([self.features.num_frames(len(waveform)) for waveform in waveforms])
        if self.network is None:
            return Padded(nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True), lengths)
        parts = [part for group in self._groups(waveforms) for part in self._joint(group)]
        return Padded(nn.utils.rnn.pad_sequence(parts, batch_first=True), lengths)

    @torch.no_grad()
    def of_energies(self, energies: Tensor, num_samples: Sequence[int]) -> Padded:
        """The same from energies [B, n_fft // 2 + 1, F] that another program made of so many samples."""
        lengths = [self.features.num_frames(n) for n in num_samples]
        energies = energies[:, :, : max(lengths)]
        if isinstance(self.network, WhisperMel):
            values = self.network.of_energy(energies, lengths)
        else:
            assert isinstance(self.network, MelSpectrogram)
            values = self.network.of_energy(energies)
        ends = torch.tensor(lengths, device=values.device)
        behind = torch.arange(values.shape[2], device=values.device) >= ends[:, None]
        return Padded(values.transpose(1, 2).masked_fill(behind[..., None], 0.0), torch.tensor(lengths))

    def _groups(self, waveforms: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Neighbours whose padded sound is at most `joint_samples`."""
        starts, longest = [0], 0
        for i, waveform in enumerate(waveforms):
            longest = max(longest, len(waveform))
            if i > starts[-1] and longest * (i - starts[-1] + 1) > self.joint_samples:
                starts.append(i)
                longest = len(waveform)
        return [waveforms[a:b] for a, b in zip(starts, [*starts[1:], len(waveforms)], strict=True)]

    def _joint(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """[F, M] of each."""
        assert self.network is not None
        lengths = [self.features.num_frames(len(waveform)) for waveform in waveforms]
        padded = _continued(waveforms, getattr(self.network, "margin", 0))
        if isinstance(self.network, WhisperMel):
            values = self.network.of_padded(padded, lengths).transpose(1, 2)
        elif isinstance(self.network, MelSpectrogram):
            values = self.network.of_padded(padded).transpose(1, 2)
        else:
            values = self.network(padded)
        return [value[:length] for value, length in zip(values, lengths, strict=True)]


def _continued(waveforms: Sequence[Tensor], margin: int) -> Tensor:
    """[B, N + 2 · margin], zeros behind: each continued by reflection at its own ends, not at those of the batch."""
    longest = max(map(len, waveforms))
    padded = waveforms[0].new_zeros(len(waveforms), longest + 2 * margin)
    for row, waveform in zip(padded, waveforms, strict=True):
        end = margin + len(waveform)
        row[margin:end] = waveform
        if margin:
            row[:margin] = waveform[1 : margin + 1].flip(0)
            row[end : end + margin] = waveform[-margin - 1 : -1].flip(0)
    return padded


def _network(features: Features) -> nn.Module:
    if features.kind == "log_mel":
        return MelSpectrogram(features.mel)
    return {"whisper": WhisperMel, "kaldi": KaldiFilterBank}[features.kind](features.num_mels)
