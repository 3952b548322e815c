"""Cross entropy over a vocabulary that is split across tensor-parallel ranks, without padded rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_BLOCK_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 26}  # fp32 scratch: half of a core's L2 cache; 256 MiB


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, first_row: int, rows: int, group: dist.ProcessGroup
    ) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        local = labels - first_row
        owned = (local >= 0) & (local < rows)
        local = local.where(owned, 0)
        exponentials = torch.empty_like(logits)
        exponentials[:, rows:] = 0
        maximum = torch.full((len(labels), 1), -torch.inf, dtype=wide, device=logits.device)
        total = torch.zeros_like(maximum)
        for span in _blocks(logits) if rows else ():
            maximum[span] = logits[span, :rows].amax(-1, keepdim=True)
            block = (logits[span, :rows] - maximum[span]).exp_()
            exponentials[span, :rows] = block
            total[span] = block.sum(-1, keepdim=True)
        label_logit = logits.gather(1, local[:, None]).to(wide) * owned[:, None]
        log_sum, label_logit = _combine(torch.cat([maximum + total.log(), label_logit], 1), group).split(1, 1)
        losses = log_sum - label_logit
        ctx.save_for_backward(exponentials, (maximum - log_sum).exp_(), local, owned, losses)
        return losses[:, 0]

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        exponentials, scale, local, owned, losses = ctx.saved_tensors
        scale = scale * grad_loss[:, None]
        grad = torch.empty_like(exponentials)
        for span in _blocks(grad):
            grad[span] = exponentials[span] * scale[span]
        at_label = torch.where(
            owned[:, None], torch.expm1(-losses) * grad_loss[:, None], grad.gather(1, local[:, None])
        )
        return grad.scatter_(1, local[:, None], at_label.to(grad.dtype)), None, None, None, None


def _blocks(logits: Tensor) -> list[slice]:
    """Spans of tokens whose fp32 logits fit the scratch."""
    step = max(1, _BLOCK_ELEMENTS[logits.device.type] // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def _combine(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[n, 2] of every rank (log of a sum, a sum) to the global [n, 2], in one collective."""
    if group.size() == 1:
        return parts
    ranks = parts.new_empty(group.size() * parts.shape[0], 2)
    dist.all_gather_into_tensor(ranks, parts, group=group)
    log_sums, sums = ranks.view(group.size(), -1, 2).unbind(-1)
    return torch.stack([log_sums.logsumexp(0), sums.sum(0)], dim=1)


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor, vocab_size: int, group: dist.ProcessGroup) -> Tensor:
    """Cross entropy of each token, in fp32 (fp64 for fp64 logits).

    Megatron's own keeps an fp32 softmax of all rows for backward and counts padded rows in. This one keeps
    exponentials in the dtype of the logits, works in blocks that fit the cache, takes each exponential once, and needs
    one collective instead of three.

    Args:
        logits: [n, padded V / tp], this rank's rows of the vocabulary.
        labels: [n] token ids below `vocab_size`.
        vocab_size: rows of all ranks that are real; the rest is padding.
        group: tensor-parallel ranks.

    Returns:
        [n].
    """
    first_row = group.rank() * logits.shape[1]
    rows = min(max(vocab_size - first_row, 0), logits.shape[1])
    return _VocabParallelCrossEntropy.apply(logits, labels, first_row, rows, group)
