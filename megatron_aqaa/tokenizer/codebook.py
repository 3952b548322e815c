"""How well a codebook is used, and what its codes say about phones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.integer]


@dataclass(frozen=True)
class CodebookUse:
    """Use of a codebook by a corpus.

    Attributes:
        size: codes there are.
        used: codes that occur.
        perplexity: exponential of the entropy; `size` if all codes are equally frequent.
        counts: occurrences of each code.
    """

    size: int
    used: int
    perplexity: float
    counts: list[int]


def codebook_use(codes: Codes, size: int) -> CodebookUse:
    """Counts of `codes` [N] in a codebook of `size`."""
    return use_of_counts(np.bincount(codes, minlength=size))


def use_of_counts(counts: npt.NDArray[np.integer]) -> CodebookUse:
    """Use of a codebook whose codes occur `counts` [size] times."""
    share = counts[counts > 0] / max(1, counts.sum())
    used, perplexity = int((counts > 0).sum()), float(np.exp(-(share * np.log(share)).sum()))
    return CodebookUse(len(counts), used, perplexity, counts.tolist())


def majority_phones(codes: Codes, phones: Codes, size: int) -> npt.NDArray[np.int64]:
    """The commonest phone of each code, [size]; −1 for codes that never occur.

    Args:
        codes: [N].
        phones: [N] phone index at the middle of each code.
        size: of the codebook.
    """
    table = np.zeros((size, int(phones.max()) + 1), np.int64)
    np.add.at(table, (codes, phones), 1)
    return np.where(table.any(1), table.argmax(1), -1)


def phone_accuracy(codes: Codes, phones: Codes, majority: npt.NDArray[np.int64]) -> float:
    """Share of `codes` [N] whose majority phone is the one spoken."""
    return float((majority[codes] == phones).mean())
