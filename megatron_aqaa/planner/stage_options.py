"""Ways to share a model's layers out over pipeline stages."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_aqaa.planner.layout import write_stages

MOST_UNEVEN_CHUNKS = 4
"""Virtual stages that uneven layouts are tried with: more gain little and move more."""


def pipeline_options(num_layers: int, ranks: int) -> Iterator[tuple[int | None, str | None]]:
    """(virtual stages, layout) for `ranks`: equal chunks of every size, and uneven ones where layers do not divide."""
    for chunks in range(1, num_layers // ranks + 1):
        total = ranks * chunks
        if chunks > 1 and ranks == 1:
            return
        virtual = chunks if chunks > 1 else None
        if num_layers % total == 0:
            yield virtual, None
        elif chunks <= MOST_UNEVEN_CHUNKS:
            yield virtual, write_stages(spread(num_layers, ranks, chunks))


def spread(num_layers: int, ranks: int, chunks: int) -> list[int]:
    """Layers of each stage, in the order in which data pass them, for ranks as equal as can be.

    Layers that are left over go to whole rounds of stages first, then to ranks in the middle: the first holds the
    embedding, the last the head.
    """
    total = ranks * chunks
    layers = [num_layers // total] * total
    rounds, rest = divmod(num_layers % total, ranks)
    for stage in range(rounds * ranks):
        layers[stage] += 1
    middle = sorted(range(ranks), key=lambda rank: (rank == ranks - 1, rank == 0, abs(2 * rank - ranks + 1)))
    for rank in middle[:rest]:
        layers[rounds * ranks + rank] += 1
    return layers


def lighter_ends(num_layers: int, ranks: int, chunks: int) -> list[int]:
    """As `spread`, with one layer less on the first and on the last rank and one more in the middle."""
    layers = spread(num_layers, ranks, chunks)
    for end, receiver in ((0, ranks // 2 - 1), (len(layers) - 1, ranks // 2)):
        if ranks > 2 and layers[end] > 1:
            layers[end] -= 1
            layers[receiver] += 1
    return layers
