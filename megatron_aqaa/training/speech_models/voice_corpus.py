"""All recordings of one voice as flat tensors, and crops of them: what the vocoder is trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from megatron_aqaa.audio.io import load_waveform
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import read_recordings, select, spread
from megatron_aqaa.ops.index import deinterleave_codes
from megatron_aqaa.vocabulary import GROUP_SIZE, LINGUISTIC_PER_GROUP, SEMANTIC_PER_GROUP, Vocabulary
from megatron_aqaa.vocoder.acoustic import GroupCodes
from megatron_aqaa.vocoder.frames import FRAMES_PER_GROUP, FrameAnalysis, VoiceFrames


@dataclass(frozen=True)
class VoiceSelection:
    """Which recordings.

    Attributes:
        manifest: the speech manifest.
        role: whose voice, "user" or "assistant"; the vocoder speaks with one.
        split: which recordings.
    """

    manifest: Path
    role: str = "assistant"
    split: str = "train"


class VoiceBatch(NamedTuple):
    """Crops of one length.

    Attributes:
        waveform: [B, N] float32.
        frames: F = N / hop_length frames.
        codes: G = F / 6 groups; None where the corpus has no tokens.
    """

    waveform: torch.Tensor
    frames: VoiceFrames
    codes: GroupCodes | None


@dataclass(frozen=True)
class VoiceCorpus:
    """Recordings laid end to end, so that crops need neither padding nor masks.

    A crop may run over the silence between two recordings; that is the only thing the networks see there.

    Attributes:
        waveform: [N].
        frames: fields with a batch of one.
        codes: with a batch of one, or None.
        starts: [recordings + 1] first group of each recording, and the end.
        lines: manifest line of each recording, from 0.
        texts: what is said in each.
    """

    waveform: torch.Tensor
    frames: VoiceFrames
    codes: GroupCodes | None
    starts: torch.Tensor
    lines: tuple[int, ...]
    texts: tuple[str, ...]

    @property
    def num_groups(self) -> int:
        """Groups of 120 ms in all."""
        return int(self.starts[-1])

    def cut(self, starts: torch.Tensor, num_groups: int) -> VoiceBatch:
        """Stretches of `num_groups` groups from each of the groups `starts [B]`."""
        groups = starts[:, None] + torch.arange(num_groups)
        frames = _spread(groups, FRAMES_PER_GROUP)
        samples = _spread(groups, len(self.waveform) // self.num_groups)
        return VoiceBatch(
            self.waveform[samples],
            VoiceFrames(*(field[0][frames] for field in self.frames)),
            self.codes and GroupCodes(*(field[0][groups] for field in self.codes)),
        )

    def recording(self, index: int) -> VoiceBatch:
        """One recording, whole."""
        start, stop = self.starts[index : index + 2].tolist()
        return self.cut(torch.tensor([start]), stop - start)

    def recordings(self) -> Iterator[VoiceBatch]:
        """All recordings, one by one."""
        return (self.recording(i) for i in range(len(self.lines)))


@dataclass(frozen=True)
class RandomCrops:
    """step → batch, a pure function of (seed, step)."""

    corpus: VoiceCorpus
    batch_size: int
    num_groups: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.corpus.num_groups < self.num_groups:
            raise ValueError(
                f"crops of {self.num_groups} groups (120 ms each) from {self.corpus.num_groups} in all: use more speech"
            )

    def __call__(self, step: int) -> VoiceBatch:
        """The batch of a step."""
        random = np.random.default_rng((self.seed, step))
        last = self.corpus.num_groups - self.num_groups
        return self.corpus.cut(torch.from_numpy(random.integers(last + 1, size=self.batch_size)), self.num_groups)


def load_voice(
    selection: VoiceSelection,
    analysis: FrameAnalysis,
    tokens: Path | None = None,
    vocabulary: Vocabulary | None = None,
    limit: int | None = None,
) -> VoiceCorpus:
    """Read recordings, analyse them, and join their tokens if asked to.

    Args:
        selection: which recordings.
        analysis: how frames are computed.
        tokens: prefix of the token data set, sequence i for line i of the manifest.
        vocabulary: layout of the token ids; needed with `tokens`.
        limit: at most so many recordings, spread evenly over the selection.

    Raises:
        ValueError: nothing selected, an unusable recording, or tokens that do not fit; names the record.
    """
    lines, texts, paths = _select(selection, limit)
    samples_per_group = FRAMES_PER_GROUP * analysis.log_mel.config.hop_length
    waveforms = [_whole_groups(path, samples_per_group, analysis.log_mel.config.sample_rate_hz) for path in paths]
    lengths = [len(waveform) // samples_per_group for waveform in waveforms]
    frames = [analysis(waveform[None]) for waveform in waveforms]
    return VoiceCorpus(
        torch.cat(waveforms),
        VoiceFrames(*(torch.cat(fields, dim=1) for fields in zip(*frames, strict=True))),
        _load_codes(tokens, vocabulary, lines, lengths) if tokens and vocabulary else None,
        torch.tensor([0, *np.cumsum(lengths)]),
        lines,
        texts,
    )


def _select(selection: VoiceSelection, limit: int | None) -> tuple[tuple[int, ...], tuple[str, ...], list[Path]]:
    recordings = read_recordings(selection.manifest)
    chosen = select(recordings, selection.split, (selection.role,))
    if not chosen:
        raise ValueError(
            f"{selection.manifest}: no recording of role {selection.role} and split {selection.split}; "
            f"splits: {', '.join(sorted({r.split for r in recordings}))}"
        )
    if limit:
        chosen = spread(chosen, limit)
    return tuple(r.line for r in chosen), tuple(r.text for r in chosen), [r.audio for r in chosen]


def _whole_groups(path: Path, samples_per_group: int, sample_rate_hz: int) -> torch.Tensor:
    waveform = load_waveform(path, sample_rate_hz)
    if len(waveform) % samples_per_group:
        raise ValueError(
            f"{path}: {len(waveform)} samples are not a multiple of {samples_per_group} (whole groups of 120 ms); "
            f"pad it with quiet noise"
        )
    return waveform


def _load_codes(prefix: Path, vocabulary: Vocabulary, lines: Collection[int], lengths: Collection[int]) -> GroupCodes:
    documents = Documents(prefix)
    parts = []
    for line, length in zip(lines, lengths, strict=True):
        token_ids = documents[line].token_ids if line < len(documents) else np.zeros(0, np.int64)
        if len(token_ids) != length * GROUP_SIZE:
            raise ValueError(
                f"{prefix}: sequence {line} holds {len(token_ids)} tokens, its recording has {length} groups of "
                f"{GROUP_SIZE}; tokenize the manifest again"
            )
        parts.append(token_ids)
    codes = deinterleave_codes(np.concatenate(parts), **vocabulary.audio_range)
    return GroupCodes(
        torch.from_numpy(codes.linguistic).view(1, -1, LINGUISTIC_PER_GROUP),
        torch.from_numpy(codes.semantic).view(1, -1, SEMANTIC_PER_GROUP),
    )


def _spread(groups: torch.Tensor, per_group: int) -> torch.Tensor:
    """Indices of groups [B, G] → indices of what they consist of [B, G · per_group]."""
    return (groups[..., None] * per_group + torch.arange(per_group)).flatten(1)
