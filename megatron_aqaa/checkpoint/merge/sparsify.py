"""Which changes from the base a method keeps: masks, block by block, and what is found in passes before them.

`rows` as in `methods`, the base first. Definitions follow mergekit 0.1.5 (`mergekit/sparsify.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

Rows = Iterable[Sequence[Tensor]]
_DIGITS = 1 << 16  # of 16 bits


def rescaling(rows: Rows, masks: Iterator[list[Tensor]]) -> list[float]:
    """Sum of magnitudes of all changes over that of the kept ones, 1 where either vanishes."""
    sums: Tensor | float = 0.0
    for (base, *models), kept in zip(rows, masks, strict=True):
        sizes = [(model - base).abs_() for model in models]
        sums = sums + torch.stack(
            [
                torch.stack([size.sum(dtype=torch.float64), (size * mask).sum(dtype=torch.float64)])
                for size, mask in zip(sizes, kept, strict=True)
            ]
        )
    assert isinstance(sums, Tensor)
    return [before / after if before >= 1e-7 and after >= 1e-7 else 1.0 for before, after in sums.tolist()]


def randomly(rows: Rows, density: Sequence[float], seed: str) -> Iterator[list[Tensor]]:
    """Masks that keep each change with its model's probability, the same whatever the size of the blocks."""
    generators = [_generator(f"{seed}/{index}") for index in range(len(density))]
    for block in rows:
        yield [
            torch.rand(block[0].shape, generator=generator) < share
            for generator, share in zip(generators, density, strict=True)
        ]


def _generator(seed: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little") >> 1)


def _magnitude_bits(block: Sequence[Tensor]) -> list[Tensor]:
    """Magnitudes of the changes as integers, which are ordered alike."""
    base, *models = block
    integers = {4: torch.int32, 8: torch.int64}[base.dtype.itemsize]
    return [(model - base).abs_().flatten().view(integers) for model in models]


def thresholds(rows: Rows, density: Sequence[float]) -> list[tuple[int, int]]:
    """For each model: magnitude bits of the smallest change that is kept, and how many equal to it are kept.

    Radix selection: 16 bits a pass, from the top; each pass counts the elements that share the bits found so far.
    """
    found = [0] * len(density)
    wanted: list[int] = []
    width = 8 * next(iter(rows))[0].dtype.itemsize
    for shift in range(width - 16, -1, -16):
        counts = torch.zeros(len(density), _DIGITS, dtype=torch.int64)
        for block in rows:
            for index, values in enumerate(_magnitude_bits(block)):
                if shift < width - 16:
                    values = values[(values >> (shift + 16)) == found[index]]
                counts[index] += torch.bincount((values >> shift) & (_DIGITS - 1), minlength=_DIGITS)
        if not wanted:
            totals = counts.sum(1).tolist()
            wanted = [max(1, int(share * n)) if share > 0 else 0 for share, n in zip(density, totals, strict=True)]
        for index, count in enumerate(counts):
            digit, wanted[index] = _digit(count, wanted[index])
            found[index] = found[index] << 16 | digit
    return list(zip(found, wanted, strict=True))


def _digit(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The digit at which `wanted` elements are reached, counted from the largest, and how many of it are wanted."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, max(wanted, 1)))
    above = int(from_top[place - 1]) if place else 0
    return _DIGITS - 1 - place, wanted - above


def largest(rows: Rows, found: Sequence[tuple[int, int]]) -> Iterator[list[Tensor]]:
    """Masks that keep each model's largest changes, as `thresholds` found them."""
    left = [equal for _, equal in found]
    for block in rows:
        masks = []
        for index, values in enumerate(_magnitude_bits(block)):
            equal = (values == found[index][0]).nonzero().flatten()[: max(left[index], 0)]
            left[index] -= len(equal)
            mask = values > found[index][0]
            mask[equal] = True
            masks.append(mask.view(block[0].shape))
        yield masks
