"""Ways of merging models: one function each, rows of all models in, merged rows out.

`rows` is gone through once or several times. Each time it gives the blocks of one tensor, in order: for every model
the same rows, float32 or float64. What a method must know of whole tensors (norms, thresholds) it sums up in a first
pass; so memory is that of a few blocks, whatever the tensor's size. `[tensors]`, one block, merges whole tensors.
The results keep the precision of the rows: rounding, once, is the caller's.

Where a method has a base model, its rows come first. Definitions follow mergekit 0.1.5 (arcee-ai/mergekit:
`mergekit/merge_methods/`, `mergekit/sparsify.py`), which rounds after each step where the tensors are bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from megatron_aqaa.checkpoint.merge.sparsify import Rows, largest, randomly, rescaling, thresholds

Masks = Callable[[], Iterator[list[Tensor]]]


def linear(rows: Rows, *, weight: Sequence[float], normalize: bool = True) -> Iterator[Tensor]:
    """Weighted sum of the models, divided by the sum of the weights if `normalize` (Wortsman et al. 2022)."""
    for block in rows:
        weights = block[0].new_tensor(weight)
        merged = torch.zeros_like(block[0])
        for tensor, factor in zip(block, weights, strict=True):
            merged.addcmul_(tensor, factor)  # as mergekit does it, so that every bit is the same
        yield merged.div_(weights.sum()) if normalize else merged


def task_arithmetic(
    rows: Rows, *, weight: Sequence[float], normalize: bool = False, scale: float = 1.0
) -> Iterator[Tensor]:
    """Base plus `scale` times the weighted sum of what each model changed (Ilharco et al. 2022)."""
    for base, *models in rows:
        deltas = [(model - base).mul_(factor) for model, factor in zip(models, weight, strict=True)]
        yield _onto(base, sum_of(deltas), _divisor(weight) if normalize else 1.0, scale)


def slerp(rows: Rows, *, t: float) -> Iterator[Tensor]:
    """From the base (`t` 0) to the other model (`t` 1) along the arc between them; straight where they are parallel."""
    squares = torch.zeros(3, dtype=torch.float64)
    for base, model in rows:
        a, b = base.double().flatten(), model.double().flatten()
        squares += torch.stack([a @ a, b @ b, a @ b])
    norm_a, norm_b = (norm if norm > 1e-8 else 1.0 for norm in squares[:2].sqrt().tolist())
    cosine = min(1.0, max(-1.0, float(squares[2]) / norm_a / norm_b))
    share_a, share_b = 1.0 - t, t
    if abs(cosine) <= 0.9995:
        angle = math.acos(cosine)
        share_a, share_b = (math.sin(share * angle) / math.sin(angle) for share in (share_a, share_b))
    for base, model in rows:
        yield base.mul(share_a).add_(model.mul(share_b))


def ties(
    rows: Rows,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = True,
    rescale: bool = False,
    scale: float = 1.0,
) -> Iterator[Tensor]:
    """Keep each model's largest changes, and of those the ones that agree with the majority's sign (Yadav et al. 2023).

    Args:
        rows: base first.
        weight: of each model but the base.
        density: share of its elements that each keeps; of equal magnitudes, those that come first.
        normalize: divide by the weights that took part, element by element.
        rescale: give the kept changes the sum of magnitudes that all had.
        scale: of the result (`lambda`).
    """
    found = thresholds(rows, density)
    return _sparse_arithmetic(rows, lambda: largest(rows, found), weight, normalize, rescale, scale, consensus=True)


def dare_linear(
    rows: Rows,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = False,
    rescale: bool = True,
    scale: float = 1.0,
    seed: str = "",
) -> Iterator[Tensor]:
    """Keep each change with probability `density`, rescaled to make up for the rest (Yu et al. 2023).

    `seed` makes the choice, the same whatever the size of the blocks; the other arguments are those of `ties`.
    """
    masks = lambda: randomly(rows, density, seed)
    return _sparse_arithmetic(rows, masks, weight, normalize, rescale, scale, consensus=False)


def dare_ties(
    rows: Rows,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = False,
    rescale: bool = True,
    scale: float = 1.0,
    seed: str = "",
) -> Iterator[Tensor]:
    """`dare_linear`, then the vote of `ties` on signs."""
    masks = lambda: randomly(rows, density, seed)
    return _sparse_arithmetic(rows, masks, weight, normalize, rescale, scale, consensus=True)


def model_stock(rows: Rows) -> Iterator[Tensor]:
    """Between base and mean of the models, nearer to the mean the more their changes agree (Jang et al. 2024)."""
    products: Tensor | float = 0.0
    count = 0
    for base, *models in rows:
        count = len(models)
        deltas = torch.stack([(model - base).double().flatten() for model in models])
        products = products + deltas @ deltas.T
    assert isinstance(products, Tensor)
    norms = products.diagonal().sqrt()
    cosines = (products / torch.outer(norms, norms).clamp(min=1e-6)).clamp(-1.0, 1.0)
    cosine = float(cosines.triu(1).sum()) / (count * (count - 1) / 2)
    denominator = 1.0 + (count - 1) * cosine
    share = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    for base, *models in rows:
        yield sum_of(models).mul_(share / count).add_(base.mul(1.0 - share))


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Sum in order, in a new tensor."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


def _divisor(weight: Sequence[float]) -> float:
    return 1.0 if abs(sum(weight)) < 1e-8 else sum(weight)


def _onto(base: Tensor, delta: Tensor, divisor: Tensor | float, scale: float) -> Tensor:
    return delta.div_(divisor).mul_(scale).add_(base)


def _sparse_arithmetic(
    rows: Rows, masks: Masks, weight: Sequence[float], normalize: bool, rescale: bool, scale: float, consensus: bool
) -> Iterator[Tensor]:
    """Task arithmetic on the changes that `masks` keeps, optionally with a vote on signs."""
    factors = rescaling(rows, masks()) if rescale else [1.0] * len(weight)
    for (base, *models), kept in zip(rows, masks(), strict=True):
        deltas = [
            (model - base).mul_(mask).mul_(factor).mul_(share)
            for model, mask, factor, share in zip(models, kept, factors, weight, strict=True)
        ]
        divisor: Tensor | float = _divisor(weight)
        if consensus:
            divisor = _vote(deltas, weight)
        yield _onto(base, sum_of(deltas), divisor if normalize else 1.0, scale)


def _vote(deltas: list[Tensor], weight: Sequence[float]) -> Tensor:
    """Zero what disagrees with the sign of the sum, in place; the weight that is left, 1 where there is none."""
    majority = (sum_of(deltas) >= 0).to(deltas[0].dtype).mul_(2.0).sub_(1.0)
    divisor = torch.zeros_like(deltas[0])
    for delta, share in zip(deltas, weight, strict=True):
        agrees = delta.sign() == majority
        delta.mul_(agrees)
        divisor.add_(agrees, alpha=share)
    return divisor.masked_fill_(divisor == 0, 1.0)
