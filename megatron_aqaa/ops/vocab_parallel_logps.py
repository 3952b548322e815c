"""Log-probabilities of tokens from logits whose vocabulary is split across tensor-parallel ranks.

`linear_vocab_parallel_logps` is the form that computes the logits itself and never holds them all.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_aqaa.ops import library

BLOCK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Logits worked on at a time: in fp32 2 MiB, a core's L2 cache (half as many: 1.02× the time, a quarter: 1.06×), and
256 MiB."""


def vocab_parallel_logps(
    logits: Tensor,
    labels: Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    allowed: range | Sequence[range] | None = None,
) -> Tensor:
    """Log-probability of each label, in fp32 (fp64 for fp64 logits).

    Megatron's cross entropy keeps an fp32 softmax of all rows for backward and counts padded rows in. This keeps
    probabilities in the dtype of the logits, works in blocks that fit the cache, takes each exponential once, and needs
    one collective, of two scalars per token and rank, instead of three that wait for each other.

    Args:
        logits: [n, padded V / tp], this rank's rows of the vocabulary.
        labels: [n] int64 token ids, the same on every rank.
        vocab_size: rows of all ranks that are real; the rest is padding and may hold anything, NaN too.
        group: tensor-parallel ranks.
        allowed: token ids that the softmax is restricted to, `range(start, stop)` or several in rising order;
            None: all. `range(vocabulary.linguistic_start, vocabulary.audio_stop)` are the audio ids.

    Returns:
        [n].

    Raises:
        ValueError: `allowed` is empty or leaves the vocabulary, shapes disagree, or a label is not among the ids of the
            softmax. On a GPU labels are checked only with MEGATRON_AQAA_CHECK_IDS=1, because it waits for the device;
            without it such a label gets −inf.
    """
    ids = softmax_ids(allowed, vocab_size, logits.shape[1] * group.size())
    check_labels(labels, len(logits), ids)
    rows = local_rows(ids, logits.shape[1], group)
    return _VocabParallelLogps.apply(logits, labels, rows, group, is_differentiated(logits))


def vocab_parallel_cross_entropy(
    logits: Tensor, labels: Tensor, *, vocab_size: int, group: dist.ProcessGroup
) -> Tensor:
    """Cross entropy of each token, [n]: minus `vocab_parallel_logps`."""
    return -vocab_parallel_logps(logits, labels, vocab_size=vocab_size, group=group)


class _VocabParallelLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, rows: list[slice], group: dist.ProcessGroup, keep: bool
    ) -> Tensor:
        probabilities = _empty_but_for_gaps(logits, rows) if keep else None  # among this rank's rows
        dtype = softmax_dtype(logits)
        local_log_sum = logits.new_full((len(logits), 1), -torch.inf, dtype=dtype)
        for tokens in _token_blocks(logits) if rows else ():
            block = torch.cat([logits[tokens, part] for part in rows], 1) if len(rows) > 1 else logits[tokens, rows[0]]
            block = block.to(dtype).clamp(min=torch.finfo(dtype).min)  # a row that is all −inf would give NaN
            block, local_log_sum[tokens] = softmax_and_log_sum(block)
            if probabilities is None:
                continue
            for part, columns in zip(block.split([r.stop - r.start for r in rows], 1), rows, strict=True):
                probabilities[tokens, columns] = part
        owned, column = label_columns(labels - group.rank() * logits.shape[1], rows)
        label_logit = torch.where(owned, logits.gather(1, column).to(local_log_sum.dtype), -torch.inf)
        log_sum, label_logit = combine_ranks(local_log_sum, label_logit, group)
        logps = label_logit - log_sum
        ctx.save_for_backward(probabilities, (local_log_sum - log_sum).exp_(), owned, column, logps)
        return logps[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logps: Tensor) -> tuple[Tensor, None, None, None, None]:
        probabilities, share, owned, column, logps = ctx.saved_tensors
        scale = share * -grad_logps[:, None]
        grad = torch.empty_like(probabilities)
        for tokens in _token_blocks(grad):
            grad[tokens] = probabilities[tokens] * scale[tokens]
        at_label = torch.where(owned, -torch.expm1(logps) * grad_logps[:, None], grad.gather(1, column))
        return grad.scatter_(1, column, at_label.to(grad.dtype)), None, None, None, None


def softmax_ids(allowed: range | Sequence[range] | None, vocab_size: int, num_rows: int) -> list[range]:
    """`allowed` as a list of ranges; checks it, and that `num_rows` of all ranks hold the vocabulary."""
    if not 0 < vocab_size <= num_rows:
        raise ValueError(f"vocab_size = {vocab_size} must lie in 1 … {num_rows}, the rows of all ranks together")
    if allowed is None:
        return [range(vocab_size)]
    ids = [allowed] if isinstance(allowed, range) else list(allowed)
    stop = 0
    for part in ids:
        if part.step != 1 or not stop <= part.start < part.stop <= vocab_size:
            raise ValueError(
                f"allowed: {part} must be a non-empty range of step 1 that starts at {stop} or above and "
                f"ends at {vocab_size} or below"
            )
        stop = part.stop
    if not ids:
        raise ValueError("allowed holds no range; None allows all ids")
    return ids


def check_labels(labels: Tensor, num_tokens: int, ids: list[range]) -> None:
    """Raises ValueError unless there are `num_tokens` labels, all (CPU, or MEGATRON_AQAA_CHECK_IDS=1) among `ids`."""
    if labels.shape != (num_tokens,):
        raise ValueError(f"labels {list(labels.shape)} must be [{num_tokens}], one per token")
    if labels.device.type != "cpu" and not library.CHECK_IDS:
        return
    inside = functools.reduce(torch.logical_or, [(labels >= part.start) & (labels < part.stop) for part in ids])
    if not inside.all():
        index = int((~inside).nonzero()[0])
        spans = ", ".join(f"{part.start} … {part.stop - 1}" for part in ids)
        raise ValueError(
            f"label {int(labels[index])} at index {index} is not among the ids of the softmax ({spans}): leave such "
            "positions out by the loss mask"
        )


def is_differentiated(*inputs: Tensor) -> bool:
    """Whether backward will ask for a gradient of any. Inside an autograd function nobody can tell."""
    return torch.is_grad_enabled() and any(one.requires_grad for one in inputs)


def local_rows(ids: list[range], num_rows: int, group: dist.ProcessGroup) -> list[slice]:
    """Those of this rank's `num_rows` rows that enter the softmax."""
    first = group.rank() * num_rows
    ends = [(max(part.start - first, 0), min(part.stop - first, num_rows)) for part in ids]
    return [slice(start, stop) for start, stop in ends if start < stop]


def label_columns(local_labels: Tensor, rows: list[slice]) -> tuple[Tensor, Tensor]:
    """Whether each label is among `rows`, and where: both [n, 1]; 0 where it is not."""
    owned = torch.zeros_like(local_labels, dtype=torch.bool)
    for part in rows:
        owned |= (local_labels >= part.start) & (local_labels < part.stop)
    return owned[:, None], local_labels.where(owned, 0)[:, None]


def softmax_dtype(like: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.promote_types(like.dtype, torch.float32)


def softmax_and_log_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of [n, rows] along the rows: [n, rows] and [n, 1]."""
    highest = logits.amax(-1, keepdim=True)
    probabilities = torch.softmax(logits, -1)
    # the largest share is 1 / Σ exp(logit − highest): a pass less than logsumexp, with one exponential less
    return probabilities, highest - probabilities.amax(-1, keepdim=True).log()


def combine_ranks(log_sum: Tensor, label_logit: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Both [n, 1], each rank's own, to those of all ranks. Only the label's owner has a logit, the others −inf."""
    if group.size() == 1:
        return log_sum, label_logit
    parts = torch.cat([log_sum, label_logit], 1)
    ranks = parts.new_empty(group.size() * len(parts), 2)
    dist.all_gather_into_tensor(ranks, parts, group=group)
    # One log-sum-exp serves both: beside −inf a logit is its own, exactly.
    log_sum, label_logit = ranks.view(group.size(), -1, 2).logsumexp(0).split(1, 1)
    return log_sum, label_logit


def _empty_but_for_gaps(logits: Tensor, rows: list[slice]) -> Tensor:
    """Like `logits`, with zeros in the columns that `rows` leave out."""
    out = torch.empty_like(logits)
    edges = [0, *(edge for part in rows for edge in (part.start, part.stop)), logits.shape[1]]
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        out[:, start:stop] = 0
    return out


def _token_blocks(logits: Tensor) -> list[slice]:
    step = max(1, BLOCK_ELEMENTS[logits.device.type] // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]
