"""Batches, augmentation and losses of the two speech tokenizers, for `training.fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from megatron_aqaa.tokenizer.feature_store import FeatureStore
from megatron_aqaa.tokenizer.linguistic import LinguisticEncoder
from megatron_aqaa.tokenizer.semantic import SemanticEncoder

IGNORED = -100


class SpeechBatch(NamedTuple):
    """Utterances of about one length, padded.

    Attributes:
        fbank: [B, F, M] float32 log-mel energies.
        lengths: [B] int64 valid frames.
        phones: [B, F] int64, `IGNORED` at padded frames.
        pitch: [B, F / 2] float32 octaves over 150 Hz; NaN where unvoiced or padded.
    """

    fbank: torch.Tensor
    lengths: torch.Tensor
    phones: torch.Tensor
    pitch: torch.Tensor


@dataclass(frozen=True)
class SpeechBatches:
    """step → batch, a pure function of (seed, step): shuffled epochs of length-bucketed batches."""

    store: FeatureStore
    utterances: list[int]
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.utterances) < self.batch_size:
            raise ValueError(
                f"{self.store.directory}: {len(self.utterances)} training utterances are fewer than one batch of "
                f"{self.batch_size}; make more speech or lower batch_size"
            )

    def __call__(self, step: int) -> SpeechBatch:
        """The batch of a step."""
        per_epoch = len(self.utterances) // self.batch_size
        random = np.random.default_rng((self.seed, step // per_epoch))
        lengths = self.store.lengths[self.utterances]
        # a little noise on the length gives each utterance new neighbours in each epoch
        order = np.argsort(lengths * random.uniform(0.9, 1.1, len(lengths)))
        order = order[random.integers(len(order) % self.batch_size + 1) :]
        batch = random.permutation(per_epoch)[step % per_epoch]
        chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        return collate(self.store, [self.utterances[i] for i in chosen])


def collate(store: FeatureStore, utterances: list[int]) -> SpeechBatch:
    """Pad utterances of `store` into one batch."""
    parts = [store[i] for i in utterances]
    lengths = torch.tensor([len(part.fbank) for part in parts])
    batch, frames = len(parts), int(lengths.max())
    fbank = torch.zeros(batch, frames, parts[0].fbank.shape[1])
    phones = torch.full((batch, frames), IGNORED)
    pitch = torch.full((batch, frames // 2), torch.nan)
    for row, (part, length) in enumerate(zip(parts, lengths.tolist(), strict=True)):
        fbank[row, :length] = torch.from_numpy(part.fbank.astype(np.float32))
        phones[row, :length] = torch.from_numpy(part.phones.astype(np.int64))
        pitch[row, : length // 2] = torch.from_numpy(part.pitch.astype(np.float32))
    return SpeechBatch(fbank, lengths, phones, pitch)


def evaluation_batches(store: FeatureStore, utterances: list[int], batch_size: int = 32) -> Iterator[SpeechBatch]:
    """All `utterances` once, like lengths together."""
    order = sorted(utterances, key=lambda i: store.lengths[i])
    for start in range(0, len(order), batch_size):
        yield collate(store, order[start : start + batch_size])


@dataclass(frozen=True)
class Augmentation:
    """Noise and masks on log-mel energies, drawn anew for each utterance.

    Attributes:
        noise_floor: range of a steady noise, in natural log of energy; below −9 nothing is audible.
        gain_deviation: of a random level, natural log of energy.
        jitter: deviation of independent noise on each value, in units of the band's deviation.
        mask_bands: the widest run of bands that is replaced by its mean.
        num_masks: such runs.
    """

    noise_floor: tuple[float, float] = (-12.0, 0.0)
    gain_deviation: float = 0.7
    jitter: float = 0.1
    mask_bands: int = 10
    num_masks: int = 1

    def __call__(self, fbank: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        """[B, F, M] → [B, F, M]; `mean`, `deviation` [M] are those of the feature norm."""
        batch, _, num_mels = fbank.shape
        low, high = self.noise_floor
        level = low + (high - low) * torch.rand(batch, 1, 1)
        noisy = torch.logaddexp(fbank + self.gain_deviation * torch.randn(batch, 1, 1), level)
        noisy = noisy + self.jitter * deviation * torch.randn_like(noisy)
        for _ in range(self.num_masks):
            width = torch.randint(self.mask_bands + 1, (batch, 1))
            start = (torch.rand(batch, 1) * (num_mels - width)).long()
            band = torch.arange(num_mels)
            masked = (band >= start) & (band < start + width)
            noisy = torch.where(masked[:, None], mean, noisy)
        return noisy


Losses = dict[str, torch.Tensor]


def linguistic_losses(augment: Augmentation) -> Callable[[LinguisticEncoder, SpeechBatch], Losses]:
    """Cross-entropy on the phones of each 10 ms."""

    def losses(model: LinguisticEncoder, batch: SpeechBatch) -> Losses:
        fbank = augment(batch.fbank, model.feature_norm.mean, model.feature_norm.deviation)
        logits = model.phone_logits(model(fbank, batch.lengths))
        return {"loss": _phone_loss(logits, batch.phones)}

    return losses


@dataclass(frozen=True)
class SemanticWeights:
    """Weights of the losses beside that of the phones.

    Attributes:
        mel: L1 on normalised mel energies.
        pitch: L1 on octaves.
        early_phone: cross-entropy on phones before the quantizer: the encoder need not wait until the codes, noise
            at first, carry a gradient.
    """

    mel: float = 0.5
    pitch: float = 2.0
    early_phone: float = 1.0


def semantic_losses(
    augment: Augmentation, weights: SemanticWeights
) -> Callable[[SemanticEncoder, SpeechBatch], Losses]:
    """Cross-entropy on phones, L1 on the clean mel energies and L1 on the pitch in octaves, all through the codes."""

    def losses(model: SemanticEncoder, batch: SpeechBatch) -> Losses:
        norm = model.feature_norm
        hidden = model.hidden(augment(batch.fbank, norm.mean, norm.deviation), batch.lengths)
        early = _phone_loss(model.early_phone_logits(hidden), batch.phones)
        prediction = model.quantize_and_predict(hidden, batch.lengths)
        phone = _phone_loss(prediction.phone_logits, batch.phones)
        inside = batch.phones != IGNORED
        mel = (prediction.mel.float() - norm(batch.fbank, inside))[inside].abs().mean()
        voiced = batch.pitch.isfinite()
        pitch = (prediction.pitch.float() - batch.pitch)[voiced].abs().sum() / voiced.sum().clamp(min=1)
        total = phone + weights.early_phone * early + weights.mel * mel + weights.pitch * pitch
        return {"loss": total, "phone": phone, "early_phone": early, "mel": mel, "pitch": pitch}

    return losses


def _phone_loss(logits: torch.Tensor, phones: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.float().flatten(0, 1), phones.flatten(), ignore_index=IGNORED)
