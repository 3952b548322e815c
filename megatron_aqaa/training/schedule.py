"""All micro-batches of a step through Megatron's schedule, whatever the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_aqaa import platform
from megatron_aqaa.training.monitoring.guards import Judge, always

Batch = dict[str, torch.Tensor]
"""token_ids, labels [B, S] int64; loss_mask [B, S] float32; document_ids [B, S] int64; where the model has a
group-position table, group_positions [B, S] int64. Further fields are for the loss."""

Loss = Callable[[torch.Tensor, Batch], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Megatron's per-token form: from token losses [B, S] and the batch to (sum to minimise, whole number that gradients
are divided by once it is summed over everything, values to bring back)."""

Window = list[list[Batch]]
"""This data-parallel rank's micro-batches of one global batch, for each virtual pipeline stage."""

_MODEL_FIELDS = ("token_ids", "document_ids", "labels", "loss_mask", "group_positions")


class Update(NamedTuple):
    """What became of one optimizer step.

    Attributes:
        grad_norm: global gradient norm before clipping; infinite where a loss scaler found an overflow.
        updated: False where the step was skipped.
    """

    grad_norm: float
    updated: bool


def gradients(
    model_chunks: list[Any],
    optimizer: MegatronOptimizer,
    batches: list[Iterator[Batch]],
    loss: Loss,
    num_microbatches: int,
    shape: tuple[int, int],
) -> list[torch.Tensor]:
    """Forward and backward over all micro-batches; the sums of gradients are then in their buffers.

    Args:
        model_chunks: DDP-wrapped models of this rank, one per virtual pipeline stage.
        optimizer: Megatron optimizer over them.
        batches: one iterator per chunk, all yielding the same micro-batches.
        loss: called on the last pipeline stage.
        num_microbatches: micro-batches of this data-parallel rank.
        shape: (micro-batch size, sequence length).

    Returns:
        What the loss brought back from each micro-batch; empty but on the last pipeline stage.
    """
    for chunk in model_chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    return _run(model_chunks, batches, loss, num_microbatches, shape, forward_only=False)


@torch.no_grad()
def update(optimizer: MegatronOptimizer, loss: float = 0.0, judge: Judge = always) -> Update:
    """Megatron's `optimizer.step()` in its own parts, with a question between gradient norm and update.

    A step that the judge turns down ends where Megatron ends one with an overflow: nothing is changed.

    Args:
        optimizer: after `gradients`.
        loss: of the step, for the judge.
        judge: gives the same answer on every rank; asked exactly once.
    """
    overflow = optimizer.prepare_grads()
    grad_norm = math.inf if overflow else float(optimizer.get_grad_norm())
    if not judge(loss, grad_norm) or overflow:
        return Update(grad_norm, updated=False)
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        parameters = [] if part.is_stub_optimizer else part.get_parameters()
        if parameters and part.config.clip_grad > 0.0:
            decoupled = part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
            clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, grad_norm, decoupled)
    return Update(grad_norm, updated=bool(optimizer.step_with_ready_grads()))


@torch.no_grad()
def evaluate(
    model_chunks: list[Any],
    batches: list[Iterator[Batch]],
    loss: Loss,
    num_microbatches: int,
    shape: tuple[int, int],
) -> list[torch.Tensor]:
    """What `gradients` brings back, from a forward pass alone; arguments as there."""
    for chunk in model_chunks:
        chunk.eval()
    values = _run(model_chunks, batches, loss, num_microbatches, shape, forward_only=True)
    for chunk in model_chunks:
        chunk.train()
    return values


def global_sums(values: list[torch.Tensor], size: int) -> torch.Tensor:
    """Sums [size] over micro-batches, data-parallel and context-parallel ranks, on every pipeline stage."""
    total = torch.stack(values).sum(0) if values else torch.zeros(size, device=platform.device())
    copies = parallel_state.get_data_parallel_group(with_context_parallel=True)
    stages = parallel_state.get_pipeline_model_parallel_group()
    if copies.size() > 1:
        torch.distributed.all_reduce(total, group=copies)
    if stages.size() > 1:
        torch.distributed.broadcast(total, parallel_state.get_pipeline_model_parallel_last_rank(), group=stages)
    return total


def _run(
    model_chunks: list[Any],
    batches: list[Iterator[Batch]],
    loss: Loss,
    num_microbatches: int,
    shape: tuple[int, int],
    *,
    forward_only: bool,
) -> list[torch.Tensor]:
    values: list[torch.Tensor] = get_forward_backward_func()(
        forward_step_func=_forward_step(loss),
        data_iterator=batches if len(batches) > 1 else batches[0],
        model=model_chunks if len(model_chunks) > 1 else model_chunks[0],
        num_microbatches=num_microbatches,
        micro_batch_size=shape[0],
        seq_length=shape[1],
        forward_only=forward_only,
    )
    return values


def _forward_step(loss: Loss) -> Callable[[Iterator[Batch], Any], tuple[torch.Tensor, Any]]:
    def forward_step(batches: Iterator[Batch], model: Any) -> tuple[torch.Tensor, Any]:
        batch = next(batches)
        output = model(**{name: batch[name] for name in _MODEL_FIELDS if name in batch})
        return output, lambda losses: loss(losses, batch)

    return forward_step
