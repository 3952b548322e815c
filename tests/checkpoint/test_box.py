"""Rectangular parts, and what lies in them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from megatron_aqaa.checkpoint.box import Box, ByBox


@pytest.mark.parametrize("sizes", [(), (1,), (7,), (3, 5), (2, 3, 4), (1, 6, 1), (0, 4)])
@pytest.mark.parametrize("max_elements", [1, 2, 5, 100])
def test_blocks_are_the_whole_in_row_major_order(sizes, max_elements):
    whole = torch.arange(torch.Size(sizes).numel()).view(sizes)
    blocks = list(Box.whole(sizes).blocks(max_elements))
    assert all(block.num_elements <= max_elements for block in blocks)
    assert torch.cat([part(whole, block).flatten() for block in blocks]).tolist() == list(range(whole.numel()))


def part(whole: Tensor, box: Box) -> Tensor:
    return whole[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))]


def test_overlap():
    assert Box((2, 0), (4, 3)).overlap(Box((0, 1), (3, 9))) == Box((2, 1), (1, 2))
    assert Box((0,), (2,)).overlap(Box((2,), (2,))) is None
    assert Box((), ()).overlap(Box((), ())) == Box((), ())


def test_narrowed():
    assert Box((2, 3), (4, 5)).narrowed(1, 2, 3) == Box((2, 5), (4, 3))


@dataclass(frozen=True)
class Tile:
    box: Box


def test_what_shares_elements_is_found_by_the_first_axis():
    """Against looking at every tile; tall and flat ones, in any order."""
    tiles = [Tile(Box((row, column), (size, 2))) for size, row in ((1, 0), (3, 1), (2, 4)) for column in (2, 0)]
    found = ByBox(tiles)
    assert [tile.box.offsets for tile in found.items] == [(0, 0), (0, 2), (1, 0), (1, 2), (4, 0), (4, 2)]
    for box in (
        Box((r, c), (n, m)) for r in range(6) for n in range(1, 7 - r) for c in range(4) for m in range(1, 5 - c)
    ):
        wanted = [(tile, part) for tile in found.items if (part := tile.box.overlap(box)) is not None]
        assert found.overlapping(box) == wanted
        assert sum(part.num_elements for _, part in wanted) == box.num_elements
