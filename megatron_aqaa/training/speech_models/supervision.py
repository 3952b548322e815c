"""What a speech encoder learns to recognise: the phone of each 10 ms, or a sequence of phones or text pieces by CTC."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from megatron_aqaa.tokenizer.feature_store import FeatureStore
from megatron_aqaa.tokenizer.phones import phone_runs, silent_phones
from megatron_aqaa.tokenizer.text import TextTokenizer

IGNORED = -100
BLANK = "<blank>"


@dataclass(frozen=True)
class SupervisionConfig:
    """Choice of the supervision.

    Attributes:
        kind: `frames` needs phones with times in the manifest, and starts far faster; `ctc` needs no times.
        text_model: with `ctc`, the units are pieces of this SentencePiece model; None: they are phones.
    """

    kind: Literal["frames", "ctc"] = "frames"
    text_model: Path | None = None

    def __post_init__(self) -> None:
        if self.kind == "frames" and self.text_model is not None:
            raise ValueError(f"text_model = {self.text_model}: only ctc reads it; set kind: ctc or leave it out")

    def of(self, store: FeatureStore) -> Supervision:
        """The supervision of a feature directory.

        Raises:
            ValueError: phones are asked for and the features have none.
        """
        if self.text_model is not None:
            return PieceCtc(store, TextTokenizer(self.text_model))
        if not store.phones:
            raise ValueError(
                f"{store.directory}: its manifest has no phones; train with kind: ctc and a text_model, or give each "
                f"line `phones`: [[start in seconds, name], …]"
            )
        return FrameLabels(store) if self.kind == "frames" else PhoneCtc(store)


class Supervision(ABC):
    """Units, and what of them was spoken and recognised.

    Attributes:
        units: names; the first is silence or the blank.
        error_name: name of the share of wrong units among the scores.
    """

    units: tuple[str, ...]
    error_name = "phone_error"

    @abstractmethod
    def targets(self, utterance: int) -> list[int]:
        """Sequence of units that an utterance of the store holds."""

    @abstractmethod
    def heard(self, frames: Sequence[int]) -> list[int]:
        """Sequence of units that the likeliest units of each 10 ms stand for."""

    @abstractmethod
    def loss(self, logits: Tensor, phones: Tensor, lengths: Tensor, targets: Tensor, num_targets: Tensor) -> Tensor:
        """Mean loss of a batch.

        Args:
            logits: [B, F, U].
            phones: [B, F] phone of each frame, `IGNORED` at padding.
            lengths: [B] valid frames.
            targets: [B, T] sequences of units, padded.
            num_targets: [B] their lengths.
        """


class FrameLabels(Supervision):
    """The phone of each 10 ms."""

    def __init__(self, store: FeatureStore) -> None:
        self.store, self.units = store, tuple(store.phones)
        self.silent = silent_phones(self.units)

    def targets(self, utterance: int) -> list[int]:
        """See `Supervision.targets`."""
        return self.heard(self.store[utterance].phones.tolist())

    def heard(self, frames: Sequence[int]) -> list[int]:
        """Runs of at least 20 ms, without silence, neighbours merged."""
        return phone_runs(frames, self.silent)

    def loss(self, logits: Tensor, phones: Tensor, lengths: Tensor, targets: Tensor, num_targets: Tensor) -> Tensor:
        """Cross-entropy, mean over the frames."""
        return functional.cross_entropy(logits.float().flatten(0, 1), phones.flatten(), ignore_index=IGNORED)


class _Ctc(Supervision):
    """Connectionist temporal classification over frames of 10 ms (Graves et al., ICML 2006); unit 0 is the blank."""

    def heard(self, frames: Sequence[int]) -> list[int]:
        """Neighbours merged, then blanks left out."""
        return [unit for unit, _ in groupby(frames) if unit]

    def loss(self, logits: Tensor, phones: Tensor, lengths: Tensor, targets: Tensor, num_targets: Tensor) -> Tensor:
        """Negative log-likelihood of the targets over the frames of the batch; 0 of targets that do not fit."""
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)
        total = functional.ctc_loss(log_probs, targets, lengths, num_targets, reduction="sum", zero_infinity=True)
        return total / lengths.sum()


class PhoneCtc(_Ctc):
    """Phones in order; pauses are blanks, and times are not looked at."""

    def __init__(self, store: FeatureStore) -> None:
        self.store, self.units = store, (BLANK, *store.phones[1:])
        self.silent = silent_phones(store.phones)

    def targets(self, utterance: int) -> list[int]:
        """See `Supervision.targets`; a phone that follows itself counts once, as frames cannot tell."""
        return [phone for phone, _ in groupby(self.store[utterance].phones.tolist()) if phone not in self.silent]


class PieceCtc(_Ctc):
    """Pieces of the transcript."""

    error_name = "piece_error"

    def __init__(self, store: FeatureStore, tokenizer: TextTokenizer) -> None:
        self.store, self.tokenizer = store, tokenizer
        self.units = (BLANK, *map(tokenizer.processor.id_to_piece, range(len(tokenizer))))

    def targets(self, utterance: int) -> list[int]:
        """See `Supervision.targets`."""
        return [piece + 1 for piece in self.tokenizer.encode(self.store.texts[utterance])]


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """[B, T] int64, padded with zeros, and [B] lengths."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    rows = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return rows, lengths
