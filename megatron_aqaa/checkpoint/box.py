"""Rectangular parts of tensors, and looking up what lies in them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


@dataclass(frozen=True)
class Box:
    """A rectangular part of a tensor.

    Attributes:
        offsets: first index on every axis.
        sizes: extent on every axis; both are empty for a scalar.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """All of a tensor of this shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def num_elements(self) -> int:
        """Elements inside."""
        return math.prod(self.sizes)

    def overlap(self, other: Box) -> Box | None:
        """The part that lies in both, None where there is none."""
        starts = tuple(map(max, self.offsets, other.offsets))
        stops = map(min, self._stops(), other._stops())
        sizes = tuple(stop - start for start, stop in zip(starts, stops, strict=True))
        return Box(starts, sizes) if all(size > 0 for size in sizes) else None

    def _stops(self) -> Iterator[int]:
        return (offset + size for offset, size in zip(self.offsets, self.sizes, strict=True))

    def blocks(self, max_elements: int) -> Iterator[Box]:
        """Parts of at most `max_elements` elements (at least 1), in row-major order, which are the whole together."""
        if self.num_elements <= max_elements:
            yield self
            return
        axis = next(axis for axis, size in enumerate(self.sizes) if size > 1)
        step = max(1, max_elements * self.sizes[axis] // self.num_elements)
        for start in range(0, self.sizes[axis], step):
            yield from self.narrowed(axis, start, min(step, self.sizes[axis] - start)).blocks(max_elements)

    def narrowed(self, axis: int, start: int, size: int) -> Box:
        """`size` indices of one axis, from the `start`-th of this box on."""
        offsets, sizes = list(self.offsets), list(self.sizes)
        offsets[axis] += start
        sizes[axis] = size
        return Box(tuple(offsets), tuple(sizes))


class HasBox(Protocol):
    """Something that lies in a box of a tensor."""

    @property
    def box(self) -> Box:
        """Where."""


T = TypeVar("T", bound=HasBox)


class ByBox(Generic[T]):
    """Things that lie beside each other in a tensor, found by the first axis: stacked tensors have hundreds.

    Args:
        items: in any order.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self.items = sorted(items, key=lambda item: item.box.offsets)
        self._starts = [item.box.offsets[:1] for item in self.items]
        self._longest = max((item.box.sizes[0] for item in self.items if item.box.sizes), default=0)

    def overlapping(self, box: Box) -> list[tuple[T, Box]]:
        """What shares elements with `box`, and the part that it shares."""
        if not box.offsets:
            return [(self.items[0], box)]
        first = bisect_left(self._starts, (box.offsets[0] - self._longest + 1,))
        stop = bisect_left(self._starts, (box.offsets[0] + box.sizes[0],))
        return [(item, part) for item in self.items[first:stop] if (part := item.box.overlap(box)) is not None]
