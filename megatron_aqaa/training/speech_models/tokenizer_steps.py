"""Batches, augmentation and losses of the two speech tokenizers, for `training.speech_models.fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from megatron_aqaa.tokenizer.feature_store import NO_PHONE, FeatureStore
from megatron_aqaa.tokenizer.front_ends import FRONT_ENDS, FrontEnd
from megatron_aqaa.tokenizer.layers import FeatureNorm, valid_frames
from megatron_aqaa.tokenizer.linguistic import LinguisticEncoder
from megatron_aqaa.tokenizer.semantic import SemanticEncoder
from megatron_aqaa.training.speech_models.supervision import IGNORED, Supervision, padded


class SpeechBatch(NamedTuple):
    """Utterances of about one length, padded.

    Attributes:
        fbank: [B, F, M] float32 log-mel features.
        lengths: [B] int64 valid frames.
        phones: [B, F] int64, `IGNORED` at padded frames and where there are no phones.
        pitch: [B, F / 2] float32 octaves over 150 Hz; NaN where unvoiced or padded.
        targets: [B, T] int64 units in order, padded.
        num_targets: [B] their numbers.
    """

    fbank: torch.Tensor
    lengths: torch.Tensor
    phones: torch.Tensor
    pitch: torch.Tensor
    targets: torch.Tensor
    num_targets: torch.Tensor


@dataclass(frozen=True)
class SpeechBatches:
    """step → batch, a pure function of (seed, step): shuffled epochs of length-bucketed batches."""

    store: FeatureStore
    supervision: Supervision
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
        return collate(self.store, self.supervision, [self.utterances[i] for i in chosen])


def collate(store: FeatureStore, supervision: Supervision, utterances: Sequence[int]) -> SpeechBatch:
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
    phones[phones == NO_PHONE] = IGNORED
    return SpeechBatch(fbank, lengths, phones, pitch, *padded([supervision.targets(i) for i in utterances]))


def evaluation_batches(
    store: FeatureStore, supervision: Supervision, utterances: Sequence[int], batch_size: int = 32
) -> Iterator[SpeechBatch]:
    """All `utterances` once, like lengths together."""
    order = sorted(utterances, key=lambda i: store.lengths[i])
    for start in range(0, len(order), batch_size):
        yield collate(store, supervision, order[start : start + batch_size])


@dataclass(frozen=True)
class Augmentation:
    """Noise and masks on log-mel features, drawn anew for each utterance.

    Attributes:
        noise_floor: range of a steady noise, in natural log of energy, full scale 1; below −9 nothing is audible.
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

    def __call__(self, fbank: torch.Tensor, norm: FeatureNorm, front_end: type[FrontEnd]) -> torch.Tensor:
        """[B, F, M] → [B, F, M] features of that front end, with the model's norm of them."""
        batch, _, num_mels = fbank.shape
        low, high = self.noise_floor
        level = low + (high - low) * torch.rand(batch, 1, 1, device=fbank.device)
        gain = self.gain_deviation * torch.randn(batch, 1, 1, device=fbank.device)
        noisy = front_end.of_energies(torch.logaddexp(front_end.energies(fbank) + gain, level))
        noisy = noisy + self.jitter * norm.deviation * torch.randn_like(noisy)
        for _ in range(self.num_masks):
            width = torch.randint(self.mask_bands + 1, (batch, 1), device=fbank.device)
            start = (torch.rand(batch, 1, device=fbank.device) * (num_mels - width)).long()
            band = torch.arange(num_mels, device=fbank.device)
            masked = (band >= start) & (band < start + width)
            noisy = torch.where(masked[:, None], norm.mean, noisy)
        return noisy


Losses = dict[str, torch.Tensor]


def linguistic_losses(
    augment: Augmentation, supervision: Supervision
) -> Callable[[LinguisticEncoder, SpeechBatch], Losses]:
    """What the supervision asks for."""

    def losses(model: LinguisticEncoder, batch: SpeechBatch) -> Losses:
        fbank = augment(batch.fbank, model.feature_norm, FRONT_ENDS[model.config.front_end])
        logits = model.unit_logits(model(fbank, batch.lengths))
        return {"loss": _unit_loss(supervision, logits, batch)}

    return losses


@dataclass(frozen=True)
class SemanticWeights:
    """Weights of the losses beside that of the units.

    Attributes:
        mel: L1 on normalised mel features.
        pitch: L1 on octaves.
        early_unit: the loss of the units before the quantizer: the encoder need not wait until the codes, noise
            at first, carry a gradient.
    """

    mel: float = 0.5
    pitch: float = 2.0
    early_unit: float = 1.0


def semantic_losses(
    augment: Augmentation, weights: SemanticWeights, supervision: Supervision
) -> Callable[[SemanticEncoder, SpeechBatch], Losses]:
    """What the supervision wants, L1 on the clean mel features and on pitch in octaves, all through the codes."""

    def losses(model: SemanticEncoder, batch: SpeechBatch) -> Losses:
        norm = model.feature_norm
        hidden = model.hidden(augment(batch.fbank, norm, FRONT_ENDS[model.config.front_end]), batch.lengths)
        early = _unit_loss(supervision, model.early_unit_logits(hidden), batch)
        prediction = model.quantize_and_predict(hidden, batch.lengths)
        unit = _unit_loss(supervision, prediction.unit_logits, batch)
        inside = valid_frames(batch.lengths, batch.fbank.shape[1])
        mel = (prediction.mel.float() - norm(batch.fbank, inside))[inside].abs().mean()
        voiced = batch.pitch.isfinite()
        pitch = (prediction.pitch.float() - batch.pitch)[voiced].abs().sum() / voiced.sum().clamp(min=1)
        quantizer = prediction.quantizer_loss
        total = unit + weights.early_unit * early + weights.mel * mel + weights.pitch * pitch + quantizer
        return {"loss": total, "unit": unit, "early_unit": early, "mel": mel, "pitch": pitch, "quantizer": quantizer}

    return losses


def _unit_loss(supervision: Supervision, logits: torch.Tensor, batch: SpeechBatch) -> torch.Tensor:
    return supervision.loss(logits, batch.phones, batch.lengths, batch.targets, batch.num_targets)
