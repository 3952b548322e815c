"""Batches of the full-size vocoder, read from disk as they are needed: pure functions of the batch's number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram
from megatron_aqaa.audio.pitch import PitchConfig, estimate_pitch
from megatron_aqaa.data.audio_loading.batch_plan import Batching, BatchPlan
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import Recording, read_recordings, select
from megatron_aqaa.training.speech_models.recording_reader import RecordingReader, usable
from megatron_aqaa.training.speech_models.voice_corpus import VoiceSelection
from megatron_aqaa.vocabulary import GROUP_DURATION_S, GROUP_SIZE, Vocabulary
from megatron_aqaa.vocoder.cosyvoice.flow_loss import FlowBatch
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig, TokenBatch
from megatron_aqaa.vocoder.cosyvoice.spoken_tokens import SpokenTokens, SpokenTokensMaker

NUM_CACHED = 256  # recordings kept in memory: about 200 MB of 10 s each


class SoundBatch(NamedTuple):
    """Sound of one length.

    Attributes:
        waveform: [B, N].
        mel: [B, F, M] natural log-mel, F = N / hop_length.
        f0_hz: [B, F]; 0 where unvoiced.
    """

    waveform: Tensor
    mel: Tensor
    f0_hz: Tensor


class SoundAnalysis:
    """Waveforms → what the waveform generator is told and asked."""

    def __init__(self, mel: MelConfig) -> None:
        self.log_mel = MelSpectrogram(mel)
        window_length = round(PitchConfig.window_length * mel.sample_rate_hz / PitchConfig.sample_rate_hz)
        self.pitch = PitchConfig(mel.sample_rate_hz, mel.hop_length, window_length + window_length % 2)

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> SoundBatch:
        """[B, N], N a multiple of the hop."""
        pitch = estimate_pitch(waveform, self.pitch)
        return SoundBatch(waveform, self.log_mel(waveform).transpose(1, 2), pitch.f0_hz * pitch.voiced)


class SoundCrops:
    """Number → crops of recordings drawn at random, each at a random place; short ones are followed by silence.

    In place of a recording that is unusable another one is drawn.

    Args:
        selection: which recordings.
        mel: of the vocoder.
        batch_size: crops.
        crop_length: samples, a multiple of the mel's hop.
        seed: of the drawing.

    Raises:
        ValueError: nothing selected, or a crop of no whole frames.
    """

    def __init__(
        self, selection: VoiceSelection, mel: MelConfig, batch_size: int, crop_length: int, seed: int = 0
    ) -> None:
        if crop_length % mel.hop_length or crop_length < mel.n_fft:
            raise ValueError(
                f"crop_length = {crop_length}: must be a multiple of the mel's hop_length {mel.hop_length} and hold "
                f"its window of {mel.n_fft}"
            )
        self.reader = RecordingReader(selection.manifest, chosen(selection), mel.sample_rate_hz)
        self.analysis, self.mel = SoundAnalysis(mel), mel
        self.batch_size, self.crop_length, self.seed = batch_size, crop_length, seed
        self.waveform = lru_cache(NUM_CACHED)(self.reader)

    def __call__(self, number: int) -> SoundBatch:
        """The batch of a number."""
        random = np.random.default_rng((self.seed, number))
        return self.analysis(torch.stack([self._crop(random) for _ in range(self.batch_size)]))

    def wholes(self, limit: int) -> Iterator[SoundBatch]:
        """The first `limit` usable recordings, each up to its last whole frame."""
        return usable(self._whole, len(self.reader), limit)

    def _whole(self, index: int) -> SoundBatch | None:
        waveform = self.waveform(index)
        if waveform is None:
            return None
        return self.analysis(waveform[None, : len(waveform) // self.mel.hop_length * self.mel.hop_length])

    def _crop(self, random: np.random.Generator) -> Tensor:
        waveform = None
        while waveform is None:
            waveform = self.waveform(int(random.integers(len(self.reader))))
        start = int(random.integers(max(1, len(waveform) - self.crop_length + 1)))
        crop = waveform[start : start + self.crop_length]
        return functional.pad(crop, (0, self.crop_length - len(crop)))


class TokenizedRecordings:
    """Number → whole recordings of like length, padded, with their tokens.

    A recording that is unusable is missing from its batch. A batch of nothing else is that of the next number.

    Args:
        selection: which recordings.
        tokens: prefix of the token data set, sequence i for line i of the manifest.
        vocabulary: layout of the token ids.
        model: the flow model's.
        batching: which recordings go together.

    Raises:
        ValueError: nothing selected, tokens for other recordings, or no tokens at all.
    """

    def __init__(
        self, selection: VoiceSelection, tokens: Path, vocabulary: Vocabulary, model: FlowConfig, batching: Batching
    ) -> None:
        self.documents, self.spoken = Documents(tokens), SpokenTokensMaker(vocabulary, model)
        self.recordings = [recording for recording in chosen(selection) if self._length(recording)]
        if not self.recordings:
            raise ValueError(f"{tokens}: no tokens for the recordings of {selection.manifest}; tokenize it again")
        self.reader = RecordingReader(selection.manifest, self.recordings, model.mel.sample_rate_hz)
        durations_s = np.array([self._length(r) / GROUP_SIZE * GROUP_DURATION_S for r in self.recordings])
        self.plan = BatchPlan(durations_s, batching)
        self.starts = [0]  # numbers of the first batch of each epoch so far

    def __call__(self, number: int) -> FlowBatch:
        """The batch of a number; epoch follows epoch."""
        while True:  # the reader ends it when nothing is left
            spoken = [one for one in map(self.one, self._indices(number)) if one is not None]
            if spoken:
                return self._padded(spoken)
            number += 1

    def first(self, limit: int) -> Iterator[SpokenTokens]:
        """The first `limit` usable recordings."""
        return usable(self.one, len(self.reader), limit)

    def _indices(self, number: int) -> list[int]:
        """Recordings of the batch of a number."""
        while number >= self.starts[-1]:
            self.starts.append(self.starts[-1] + len(self.plan.epoch(len(self.starts) - 1)))
        epoch = bisect_right(self.starts, number) - 1
        return [int(index) for index in self.plan.epoch(epoch)[number - self.starts[epoch]]]

    def one(self, index: int) -> SpokenTokens | None:
        """One recording; None if it is unusable.

        Raises:
            ValueError: its tokens are not as long, or no recording is left.
        """
        waveform = self.reader(index)
        if waveform is None:
            return None
        recording = self.recordings[index]
        token_ids = self.documents[recording.line].token_ids
        try:
            return self.spoken(waveform, token_ids)
        except ValueError as error:
            raise ValueError(f"{recording.audio}: {error}; tokenize the manifest again") from None

    def _padded(self, spoken: Sequence[SpokenTokens]) -> FlowBatch:
        lengths = torch.tensor([len(one.tokens) for one in spoken])
        tokens = pad_sequence([one.tokens for one in spoken], batch_first=True)
        mel = pad_sequence([one.mel for one in spoken], batch_first=True)
        return FlowBatch(TokenBatch(tokens, None if (lengths == lengths[0]).all() else lengths), mel)

    def _length(self, recording: Recording) -> int:
        if recording.line >= len(self.documents):
            raise ValueError(
                f"{self.documents.prefix}: {len(self.documents)} sequences, but line {recording.line} of the manifest "
                f"is selected; tokenize the manifest again"
            )
        return int(self.documents.lengths[recording.line])


def chosen(selection: VoiceSelection) -> list[Recording]:
    """The recordings of a selection.

    Raises:
        ValueError: none.
    """
    found = select(recordings := read_recordings(selection.manifest), selection.split, (selection.role,))
    if not found:
        splits = ", ".join(sorted({recording.split for recording in recordings}))
        raise ValueError(
            f"{selection.manifest}: no recording of role {selection.role} and split {selection.split}; splits: {splits}"
        )
    return found
