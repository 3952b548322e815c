"""One optimizer step of the language model: forward and backward over all micro-batches, then the update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer

from megatron_aqaa.training.schedule import Batch, Loss, evaluate, global_sums, update
from megatron_aqaa.vocabulary import MODALITY_NAMES, Vocabulary

_NUM_SUMS = 2 + 2 * len(MODALITY_NAMES)


@dataclass(frozen=True)
class StepResult:
    """What one step reports; the same on every rank.

    Attributes:
        loss: weighted mean over the global batch, as minimised.
        modality_losses: unweighted mean per modality, absent where the batch had no such target.
        grad_norm: global gradient norm before clipping.
        updated: False where the update was skipped (overflow).
    """

    loss: float
    modality_losses: dict[str, float]
    grad_norm: float
    updated: bool

    @property
    def values(self) -> dict[str, float]:
        """What is logged beside the loss."""
        return {f"loss_{name}": value for name, value in self.modality_losses.items()}


def train_step(
    model_chunks: list[Any],
    optimizer: MegatronOptimizer,
    batches: list[Iterator[Batch]],
    vocabulary: Vocabulary,
    num_microbatches: int,
    shape: tuple[int, int],
) -> StepResult:
    """Run one step.

    Args:
        model_chunks: DDP-wrapped models of this rank, one per virtual pipeline stage.
        optimizer: Megatron optimizer over them.
        batches: one iterator per chunk, all yielding the same micro-batches; `loss_mask` holds whole weights.
        vocabulary: tells modalities apart for the log.
        num_microbatches: micro-batches of this data-parallel rank.
        shape: (micro-batch size, sequence length).
    """
    done = update(model_chunks, optimizer, batches, _loss(vocabulary), num_microbatches, shape)
    return _result(global_sums(done.values, _NUM_SUMS), done.grad_norm, done.updated)


def validation_step(
    model_chunks: list[Any],
    batches: list[Iterator[Batch]],
    vocabulary: Vocabulary,
    num_microbatches: int,
    shape: tuple[int, int],
) -> StepResult:
    """Losses over `num_microbatches` without a backward pass; arguments as in `train_step`."""
    values = evaluate(model_chunks, batches, _loss(vocabulary), num_microbatches, shape)
    return _result(global_sums(values, _NUM_SUMS), grad_norm=0.0, updated=False)


def _loss(vocabulary: Vocabulary) -> Loss:
    """Weighted sum, sum of weights, sums to log.

    The weights are whole numbers because Megatron counts tokens as integers; it divides the gradients by their
    global sum, so the loss is the same for every micro-batch split and parallel layout.
    """

    def loss(losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weights = batch["loss_mask"]
        weighted = (losses.float() * weights).sum()
        modality = vocabulary.modality(batch["labels"])
        target = weights > 0
        sums = [weighted.detach(), weights.sum()]
        for index in range(len(MODALITY_NAMES)):
            chosen = target & (modality == index)
            sums += [losses.detach().float()[chosen].sum(), chosen.sum()]
        return weighted, weights.sum().to(torch.int), torch.stack([value.float() for value in sums])

    return loss


def _result(totals: torch.Tensor, grad_norm: float, updated: bool) -> StepResult:
    weighted, weight, *rest = totals.tolist()
    modality_losses = {
        name: rest[2 * index] / rest[2 * index + 1] for index, name in enumerate(MODALITY_NAMES) if rest[2 * index + 1]
    }
    return StepResult(weighted / max(weight, 1.0), modality_losses, grad_norm, updated)
