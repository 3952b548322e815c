"""One optimizer step of the language model: forward and backward over all micro-batches, then the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_aqaa import platform
from megatron_aqaa.vocabulary import MODALITY_NAMES, Vocabulary

Batch = dict[str, torch.Tensor]
"""token_ids, labels [B, S] int64; loss_mask [B, S] float32 whole weights; document_ids [B, S] int64; where the model
has a group-position table, group_positions [B, S] int64."""


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
        batches: one iterator per chunk, all yielding the same micro-batches.
        vocabulary: tells modalities apart for the log.
        num_microbatches: micro-batches of this data-parallel rank.
        shape: (micro-batch size, sequence length).
    """
    for chunk in model_chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    totals = _run(model_chunks, batches, vocabulary, num_microbatches, shape, forward_only=False)
    updated, grad_norm, _ = optimizer.step()
    return _result(totals, float(grad_norm or 0.0), bool(updated))


def validation_step(
    model_chunks: list[Any],
    batches: list[Iterator[Batch]],
    vocabulary: Vocabulary,
    num_microbatches: int,
    shape: tuple[int, int],
) -> StepResult:
    """Losses over `num_microbatches` without a backward pass; arguments as in `train_step`."""
    for chunk in model_chunks:
        chunk.eval()
    totals = _run(model_chunks, batches, vocabulary, num_microbatches, shape, forward_only=True)
    for chunk in model_chunks:
        chunk.train()
    return _result(totals, grad_norm=0.0, updated=False)


def _run(
    model_chunks: list[Any],
    batches: list[Iterator[Batch]],
    vocabulary: Vocabulary,
    num_microbatches: int,
    shape: tuple[int, int],
    *,
    forward_only: bool,
) -> torch.Tensor:
    """All micro-batches through Megatron's schedule; the sums of `_loss` over all of them and all ranks."""
    sums = get_forward_backward_func()(
        forward_step_func=_forward_step(vocabulary),
        data_iterator=batches if len(batches) > 1 else batches[0],
        model=model_chunks if len(model_chunks) > 1 else model_chunks[0],
        num_microbatches=num_microbatches,
        micro_batch_size=shape[0],
        seq_length=shape[1],
        forward_only=forward_only,
    )
    return _global_sums(sums)


def _forward_step(vocabulary: Vocabulary) -> Callable[[Iterator[Batch], Any], tuple[torch.Tensor, Any]]:
    def forward_step(batches: Iterator[Batch], model: Any) -> tuple[torch.Tensor, Any]:
        batch = next(batches)
        output = model(**batch)
        return output, lambda losses: _loss(losses, batch, vocabulary)

    return forward_step


def _loss(
    losses: torch.Tensor, batch: Batch, vocabulary: Vocabulary
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Megatron's per-token form: (weighted sum, sum of weights, sums to log).

    The weights are whole numbers because Megatron counts tokens as integers; it divides the gradients by their
    global sum, so the loss is the same for every micro-batch split and parallel layout.
    """
    weights = batch["loss_mask"]
    weighted = (losses.float() * weights).sum()
    modality = vocabulary.modality(batch["labels"])
    target = weights > 0
    sums = [weighted.detach(), weights.sum()]
    for index in range(len(MODALITY_NAMES)):
        chosen = target & (modality == index)
        sums += [losses.detach().float()[chosen].sum(), chosen.sum()]
    return weighted, weights.sum().to(torch.int), torch.stack([value.float() for value in sums])


def _global_sums(per_microbatch: list[torch.Tensor]) -> torch.Tensor:
    """Sums over micro-batches, data-parallel and context-parallel ranks, on every pipeline stage."""
    empty = torch.zeros(2 + 2 * len(MODALITY_NAMES), device=platform.device())
    total = torch.stack(per_microbatch).sum(0) if per_microbatch else empty
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    torch.distributed.broadcast(total, last, group=parallel_state.get_pipeline_model_parallel_group())
    return total


def _result(totals: torch.Tensor, grad_norm: float, updated: bool) -> StepResult:
    weighted, weight, *rest = totals.tolist()
    modality_losses = {
        name: rest[2 * index] / rest[2 * index + 1] for index, name in enumerate(MODALITY_NAMES) if rest[2 * index + 1]
    }
    return StepResult(weighted / max(weight, 1.0), modality_losses, grad_norm, updated)
