"""One optimizer step of the language model: forward and backward over all micro-batches, then the update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer

from megatron_aqaa.training.monitoring.guards import Judge, always
from megatron_aqaa.training.schedule import Batch, Loss, Update, evaluate, global_sums, gradients, update
from megatron_aqaa.vocabulary import GROUP_DURATION_S, GROUP_SIZE, MODALITY_NAMES, Vocabulary

_NUM_SUMS = 3 + 2 * len(MODALITY_NAMES)


@dataclass(frozen=True)
class StepResult:
    """What one step reports; the same on every rank.

    Attributes:
        loss: weighted mean over the global batch, as minimised.
        modality_losses: unweighted mean per modality, absent where the batch had no such target.
        modality_targets: targets per modality; the losses weighted by these and by the weights of `data` give `loss`.
        audio_seconds: length of the speech in the global batch, questions included.
        grad_norm: global gradient norm before clipping.
        updated: False where the update was skipped.
    """

    loss: float
    modality_losses: dict[str, float]
    modality_targets: dict[str, int]
    audio_seconds: float
    grad_norm: float
    updated: bool

    @property
    def values(self) -> dict[str, float]:
        """What is logged beside the loss."""
        return {f"loss_{name}": value for name, value in self.modality_losses.items()}

    @property
    def targets(self) -> int:
        """Positions that went through the output head."""
        return sum(self.modality_targets.values())

    @property
    def counts(self) -> dict[str, int]:
        """What is logged of a training step's batch."""
        return {f"targets_{name}": count for name, count in self.modality_targets.items()}


def train_step(
    model_chunks: list[Any],
    optimizer: MegatronOptimizer,
    batches: list[Iterator[Batch]],
    vocabulary: Vocabulary,
    num_microbatches: int,
    shape: tuple[int, int],
    judge: Judge = always,
) -> StepResult:
    """Run one step.

    Args:
        model_chunks: DDP-wrapped models of this rank, one per virtual pipeline stage.
        optimizer: Megatron optimizer over them.
        batches: one iterator per chunk, all yielding the same micro-batches; `loss_mask` holds whole weights.
        vocabulary: tells modalities apart for the log.
        num_microbatches: micro-batches of this data-parallel rank.
        shape: (micro-batch size, sequence length).
        judge: decides whether the step counts.
    """
    values = gradients(model_chunks, optimizer, batches, _loss(vocabulary), num_microbatches, shape)
    totals = global_sums(values, _NUM_SUMS).tolist()
    return _result(totals, update(optimizer, _mean(totals), judge))


def validation_step(
    model_chunks: list[Any],
    batches: list[Iterator[Batch]],
    vocabulary: Vocabulary,
    num_microbatches: int,
    shape: tuple[int, int],
) -> StepResult:
    """Losses over `num_microbatches` without a backward pass; arguments as in `train_step`."""
    values = evaluate(model_chunks, batches, _loss(vocabulary), num_microbatches, shape)
    return _result(global_sums(values, _NUM_SUMS).tolist(), Update(0.0, updated=False))


def _loss(vocabulary: Vocabulary) -> Loss:
    """Weighted sum, sum of weights, sums to log.

    The weights are whole numbers because Megatron counts tokens as integers; it divides the gradients by their
    global sum, so the loss is the same for every micro-batch split and parallel layout.
    """

    def loss(losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weights = batch["loss_mask"]
        weighted, weight = (losses.float() * weights).sum(), weights.sum()
        audio_tokens = vocabulary.is_audio(batch["token_ids"]).sum()
        kinds = torch.arange(len(MODALITY_NAMES), device=weights.device)[:, None, None]
        chosen = (vocabulary.modality(batch["labels"]) == kinds) & (weights > 0)  # [3, B, S]
        # Masked sums: picking by a mask would make the host wait for the GPU, thrice a micro-batch.
        sums = torch.where(chosen, losses.detach().float(), 0.0).sum((1, 2))
        of_all = torch.stack([weighted.detach(), weight.float(), audio_tokens.float()])
        return weighted, weight.to(torch.int), torch.cat([of_all, sums, chosen.sum((1, 2)).float()])

    return loss


def _mean(totals: list[float]) -> float:
    """The loss as minimised."""
    weighted, weight, *_ = totals
    return weighted / max(weight, 1.0)


def _result(totals: list[float], done: Update) -> StepResult:
    _, _, audio_tokens, *rest = totals
    count = len(MODALITY_NAMES)
    sums, counts = (dict(zip(MODALITY_NAMES, part, strict=True)) for part in (rest[:count], rest[count:]))
    return StepResult(
        loss=_mean(totals),
        modality_losses={name: sums[name] / count for name, count in counts.items() if count},
        modality_targets={name: int(count) for name, count in counts.items()},
        audio_seconds=audio_tokens / GROUP_SIZE * GROUP_DURATION_S,
        grad_norm=done.grad_norm,
        updated=done.updated,
    )
