"""The released linguistic tokenizer: Kaldi filter banks, Paraformer's encoder in chunks, the nearest centroid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_aqaa.audio.kaldi_fbank import HOP_LENGTH, WINDOW_LENGTH, KaldiFilterBank, num_frames
from megatron_aqaa.tokenizer.centroids import load_centroids, nearest_centroid
from megatron_aqaa.tokenizer.released.paraformer import (
    FRAMES_PER_CODE,
    STACKED_FRAMES,
    Normalization,
    load_paraformer,
)
from megatron_aqaa.tokenizer.sanm import SanmEncoder

_CONTEXT = STACKED_FRAMES // 2


def stack_frames(fbank: Tensor) -> Tensor:
    """Low-frame-rate stacking as funasr does it: [F, M] → [ceil(F / 6), 7 · M].

    Stack t holds frames 6t − 3 … 6t + 3; the first and the last frame stand for those that lie outside
    (modelscope/FunASR: `funasr/frontends/wav_frontend.py`).
    """
    middles = torch.arange(0, len(fbank), FRAMES_PER_CODE)
    frames = middles[:, None] + torch.arange(-_CONTEXT, _CONTEXT + 1)
    return fbank[frames.clamp(0, len(fbank) - 1)].flatten(1)


class ReleasedLinguistic:
    """Prepared 16 kHz waveforms → linguistic codes at 16.67 Hz.

    Differs from the released program in one thing, on purpose: where a recording ends less than 25 ms after a multiple
    of 240 ms, that program emits the last five codes a second time, which the interleaving then drops.

    Args:
        encoder: hidden states of 60 ms.
        normalization: of the stacked filter banks.
        centroids: [K, D] float32.
    """

    def __init__(self, encoder: SanmEncoder, normalization: Normalization, centroids: Tensor) -> None:
        if centroids.shape[1] != encoder.config.output_size:
            raise ValueError(
                f"centroids of {centroids.shape[1]} values do not fit an encoder of {encoder.config.output_size}"
            )
        self.encoder, self.normalization, self.centroids = encoder.eval(), normalization, centroids
        self.filter_bank = KaldiFilterBank(encoder.config.input_size // STACKED_FRAMES)

    @classmethod
    def load(cls, folder: Path, centroids: Path) -> ReleasedLinguistic:
        """Read Paraformer's folder and the centroid file.

        Raises:
            ValueError: a file is missing or damaged, or they do not fit each other.
        """
        return cls(*load_paraformer(folder), load_centroids(centroids))

    def frames(self, waveform: Tensor) -> Tensor:
        """Stacked, normalised filter banks [F, 560] of [N] samples; F = 0 below 400 samples."""
        if num_frames(len(waveform)) == 0:
            return waveform.new_zeros(0, self.encoder.config.input_size)
        return self._normalized(stack_frames(self.filter_bank(waveform[None])[0]))

    def _normalized(self, stacked: Tensor) -> Tensor:
        return (stacked + self.normalization.shift) * self.normalization.scale

    @torch.inference_mode()
    def codes(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Codes [F] int64 of waveforms [N]; batch those of like length."""
        frames = [self.frames(waveform) for waveform in waveforms]
        lengths = torch.tensor([len(f) for f in frames])
        if not int(lengths.max()):
            return [torch.zeros(0, dtype=torch.int64) for _ in frames]
        hidden = self.encoder(torch.nn.utils.rnn.pad_sequence(frames, batch_first=True), lengths)
        codes = nearest_centroid(hidden, self.centroids)
        return [codes[i, :length] for i, length in enumerate(lengths.tolist())]

    def stream(self) -> LinguisticStream:
        """A session that takes audio as it comes."""
        return LinguisticStream(self)


class LinguisticStream:
    """Codes of one recording while it is being heard: the same as of the whole, however it is cut.

    Four codes come out for every 240 ms, 25 ms late. The audio must have its final level: the peak of a recording that
    is still going on is not known.
    """

    def __init__(self, tokenizer: ReleasedLinguistic) -> None:
        self.tokenizer = tokenizer
        self.samples = torch.zeros(0)  # not yet in a frame that is done with
        self.fbank = torch.zeros(0, 0)  # frames from `first` on
        self.first = self.stacked = 0  # number of the first kept frame; stacks encoded so far
        self.state = tokenizer.encoder.start(1, tokenizer.normalization.shift)

    @torch.inference_mode()
    def feed(self, samples: Tensor, final: bool = False) -> Tensor:
        """Take [N] samples at 16 kHz, of any length, the last ones with `final`; returns the codes [F] that are due.

        Raises:
            ValueError: NaN or infinite samples; the stream stays as it was.
        """
        if not torch.isfinite(samples).all():
            raise ValueError("the stream was given NaN or infinite samples; leave them out or send silence instead")
        self._hear(samples)
        total = self.first + len(self.fbank)
        chunk = self.tokenizer.encoder.config.chunk_frames
        if final:
            due = -(-total // FRAMES_PER_CODE) - self.stacked
        else:
            due = max(0, (total - _CONTEXT - 1) // FRAMES_PER_CODE + 1 - self.stacked) // chunk * chunk
        if due <= 0:
            return torch.zeros(0, dtype=torch.int64)
        hidden, self.state = self.tokenizer.encoder.stream(self._stacks(due)[None], self.state)
        self.stacked += due
        self._forget()
        return nearest_centroid(hidden[0], self.tokenizer.centroids)

    def _hear(self, samples: Tensor) -> None:
        self.samples = torch.cat((self.samples, samples))
        count = num_frames(len(self.samples))
        if not count:
            return
        new = self.tokenizer.filter_bank(self.samples[None, : (count - 1) * HOP_LENGTH + WINDOW_LENGTH])[0]
        self.fbank = torch.cat((self.fbank, new)) if len(self.fbank) else new
        self.samples = self.samples[count * HOP_LENGTH :]

    def _stacks(self, count: int) -> Tensor:
        middles = torch.arange(self.stacked, self.stacked + count) * FRAMES_PER_CODE
        frames = (middles[:, None] + torch.arange(-_CONTEXT, _CONTEXT + 1)).clamp(min=0) - self.first
        return self.tokenizer._normalized(self.fbank[frames.clamp(max=len(self.fbank) - 1)].flatten(1))

    def _forget(self) -> None:
        keep = max(0, self.stacked * FRAMES_PER_CODE - _CONTEXT) - self.first
        self.fbank, self.first = self.fbank[keep:], self.first + keep
