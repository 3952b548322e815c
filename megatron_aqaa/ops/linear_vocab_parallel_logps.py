"""Log-probabilities of tokens from hidden states: output projection and softmax in one, without the logits.

Works block by block over the rows of the projection:

    logp = logit[label] − log Σ exp(logit)        d logp / d logit = [row is label] − exp(logit − log Σ)

Forward leaves a log-sum for each token and block. Backward needs each block's softmax once more: it computes it again,
so that one block is all that is ever held, or finds it kept by forward in the dtype of the activations. A block's
weight gradient is complete when it is written; the hidden gradient grows in fp32 over the blocks and is summed over the
tensor-parallel group once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_aqaa.ops.main_grad import accumulates_in_main_grad, dummy_gradient
from megatron_aqaa.ops.vocab_parallel_logps import (
    BLOCK_ELEMENTS,
    check_labels,
    combine_ranks,
    is_differentiated,
    label_columns,
    local_rows,
    softmax_and_log_sum,
    softmax_dtype,
    softmax_ids,
)

# A block has at least this many rows. At [922, 256] × 5376 in bf16 256 rows cost 1.18×, 128 rows 1.35×; more than 512
# gain nothing there. It also has a third of the width of `hidden`, whose fp32 gradient is added to once a block: at
# [1024, 3072] × 9344 512 rows cost 1.04× (probabilities kept; all forward and backward, one EPYC core, 2026-11).
_FEWEST_ROWS = 512


def linear_vocab_parallel_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    loss_mask: Tensor | None = None,
    allowed: range | Sequence[range] | None = None,
    recompute: bool = True,
    block_rows: int | None = None,
) -> Tensor:
    """`vocab_parallel_logps` of `hidden @ weight.T`, without logits or their gradient.

    Where Megatron's `main_grad` is at hand, the weight gradient goes straight into it (see `accumulates_in_main_grad`),
    and none of the size of the weight is made.

    Args:
        hidden: [n, H], the same on every rank; its gradient is summed over `group` here.
        weight: [padded V / tp, H], this rank's rows of the output projection.
        labels: [n] int64 token ids, the same on every rank; read only where loss_mask is not zero.
        vocab_size: rows of all ranks that are real; padding may hold anything, NaN too.
        group: tensor-parallel ranks.
        loss_mask: [n]; tokens with zero skip the projection and get 0. None: all count.
        allowed: token ids that the softmax is restricted to, as for `vocab_parallel_logps`.
        recompute: memory does not grow with the vocabulary, for a fourth matrix product beside the three of the plain
            form. False: three products, and backward finds the probabilities of the tokens that count, [their number,
            V / tp] in the dtype of `hidden`; without gradients nothing is kept.
        block_rows: rows of the projection worked on at a time; None: as many as suit the cache.

    Returns:
        [n] in fp32 (fp64 for fp64).

    Raises:
        ValueError: as `vocab_parallel_logps`, for the labels that are read.
    """
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must agree in their last size")
    if block_rows is not None and block_rows < 1:
        raise ValueError(f"block_rows = {block_rows}: must be at least 1")
    ids = softmax_ids(allowed, vocab_size, len(weight) * group.size())
    if loss_mask is None:
        return _checked_logps(hidden, weight, labels, ids, group, recompute, block_rows)
    if not loss_mask.shape == labels.shape == (len(hidden),):
        raise ValueError(
            f"loss_mask {list(loss_mask.shape)} and labels {list(labels.shape)} must be [{len(hidden)}], one per token"
        )
    chosen = loss_mask.nonzero()[:, 0]
    logps = _checked_logps(
        hidden.index_select(0, chosen), weight, labels.index_select(0, chosen), ids, group, recompute, block_rows
    )
    return logps.new_zeros(len(hidden)).index_copy(0, chosen, logps)


def _checked_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ids: list[range],
    group: dist.ProcessGroup,
    recompute: bool,
    block_rows: int | None,
) -> Tensor:
    check_labels(labels, len(hidden), ids)
    if block_rows is None:
        suits_cache = BLOCK_ELEMENTS[hidden.device.type] // max(1, len(hidden))
        block_rows = max(_FEWEST_ROWS, hidden.shape[1] // 3, suits_cache)
    blocks = [
        slice(start, min(start + block_rows, part.stop))
        for part in local_rows(ids, len(weight), group)
        for start in range(part.start, part.stop, block_rows)
    ]
    keep = not recompute and is_differentiated(hidden, weight)
    return _LinearVocabParallelLogps.apply(hidden, weight, labels - group.rank() * len(weight), blocks, group, keep)


class _LinearVocabParallelLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        local_labels: Tensor,
        blocks: list[slice],
        group: dist.ProcessGroup,
        keep: bool,
    ) -> Tensor:
        label_logit = hidden.new_full((len(hidden), 1), -torch.inf, dtype=softmax_dtype(hidden))
        log_sums = label_logit.repeat(1, len(blocks))
        kept = hidden.new_empty(len(hidden) * sum(map(_num_rows, blocks)) if keep else 0)
        kept_by_block = _by_block(kept, blocks, len(hidden)) if keep else []
        for index, rows in enumerate(blocks):
            logits = _logits(hidden, weight[rows])
            owned, column = _columns(local_labels, rows)
            label_logit = torch.where(owned, logits.gather(1, column), label_logit)
            probabilities, log_sums[:, index : index + 1] = softmax_and_log_sum(logits)
            if keep:
                kept_by_block[index].copy_(probabilities)
            del logits, probabilities  # or they would be held beside those of the next block
        log_sum, label_logit = combine_ranks(log_sums.logsumexp(1, keepdim=True), label_logit, group)
        logps = label_logit - log_sum
        ctx.save_for_backward(hidden, weight, local_labels, (log_sums - log_sum).exp_(), logps, kept)
        ctx.blocks, ctx.group, ctx.keep = blocks, group, keep
        return logps[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logps: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, local_labels, shares, logps, kept = ctx.saved_tensors
        in_main_grad = ctx.needs_input_grad[1] and accumulates_in_main_grad(weight)
        grad_hidden = torch.zeros_like(hidden, dtype=shares.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = weight.main_grad if in_main_grad else None
        if ctx.needs_input_grad[1] and not in_main_grad:
            grad_weight = torch.zeros_like(weight)
        at_label = -torch.expm1(logps) * grad_logps[:, None]
        scales = shares * -grad_logps[:, None]
        kept_by_block = _by_block(kept, ctx.blocks, len(hidden)) if ctx.keep else []
        for index, rows in enumerate(ctx.blocks):
            scale = scales[:, index : index + 1]
            grad = kept_by_block[index] * scale if ctx.keep else _logits(hidden, weight[rows]).softmax(-1).mul_(scale)
            owned, column = _columns(local_labels, rows)
            grad.scatter_(1, column, torch.where(owned, at_label, grad.gather(1, column)))
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                _add_product_(grad_hidden, grad, weight[rows])
            if grad_weight is not None:
                _add_product_(grad_weight[rows], grad.t(), hidden)
        if grad_hidden is not None:
            if ctx.group.size() > 1:
                dist.all_reduce(grad_hidden, group=ctx.group)
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, dummy_gradient(weight) if in_main_grad else grad_weight, None, None, None, None


def _num_rows(rows: slice) -> int:
    return rows.stop - rows.start


def _by_block(kept: Tensor, blocks: list[slice], num_tokens: int) -> list[Tensor]:
    """[num_tokens, rows] of each block, parts of one tensor.

    A tensor for each block left a hole behind it that the next block's softmax did not fit into: at 3B and 3,686 tokens
    949 MiB at the peak, of which 525 are kept.
    """
    parts = kept.split([num_tokens * _num_rows(rows) for rows in blocks])
    return [part.view(num_tokens, _num_rows(rows)) for part, rows in zip(parts, blocks, strict=True)]


def _logits(hidden: Tensor, rows: Tensor) -> Tensor:
    dtype = softmax_dtype(hidden)
    return _product(hidden, rows.t(), dtype).to(dtype)


def _columns(local_labels: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    return label_columns(local_labels - rows.start, [slice(0, rows.stop - rows.start)])


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype` where PyTorch can write a wider product than its factors (CUDA), else in theirs (CPU)."""
    if left.is_cuda and left.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return torch.mm(left, right)


def _add_product_(out: Tensor, left: Tensor, right: Tensor) -> None:
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out.add_(_product(left, right, out.dtype))
