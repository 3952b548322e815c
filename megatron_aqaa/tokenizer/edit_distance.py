"""Levenshtein's distance, by which words and phones are judged."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def edit_distance(reference: Sequence[Hashable], heard: Sequence[Hashable]) -> int:
    """Insertions, deletions and substitutions that turn one into the other, at the least."""
    row = list(range(len(heard) + 1))
    for number, item in enumerate(reference, 1):
        above, row = row, [number]
        for place, other in enumerate(heard):
            row.append(min(above[place] + (item != other), above[place + 1] + 1, row[place] + 1))
    return row[-1]
