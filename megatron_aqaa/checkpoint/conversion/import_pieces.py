"""What the Megatron tensors of an imported model are made of: parts of the source's, new rows, padding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from torch import Tensor

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.conversion.pieces import Piece, Pieces
from megatron_aqaa.checkpoint.mapping import EMBEDDING, HEAD, HF_HEAD, links
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles, StoredModel, StoredTensor
from megatron_aqaa.model.config import ModelConfig
from megatron_aqaa.model.vocabulary_growth import draw_rows
from megatron_aqaa.vocabulary import Vocabulary


def imported_pieces(
    stored: StoredModel, model: ModelConfig, rows: int, vocabulary: Vocabulary, padded: int, seed: int
) -> dict[str, Pieces]:
    """Megatron tensor → its pieces.

    Args:
        stored: tensors of the source.
        model: size and kind.
        rows: of the source's vocabulary tables.
        vocabulary: id layout; may be larger than `rows`.
        padded: rows of the written tables.
        seed: of new rows.
    """
    kept = rows if vocabulary.size == rows else vocabulary.text_size  # of a grown vocabulary
    found: dict[str, list[Piece]] = {}
    for link in links(model, rows):
        if link.name == HF_HEAD and not model.untie_embeddings_and_output_weights:
            continue
        pieces, source = found.setdefault(link.megatron, []), stored.tensors[link.name]
        if link.megatron in (EMBEDDING, HEAD):
            pieces += _table_pieces(source, kept, vocabulary.size, padded, seed)
        else:
            pieces.append(Piece(link.megatron_box, source, link.box))
    return {name: Pieces(pieces) for name, pieces in found.items()}


def _table_pieces(table: StoredTensor, kept: int, size: int, padded: int, seed: int) -> Iterator[Piece]:
    """Rows of a vocabulary table: those of the source, drawn ones up to `size`, then padding."""
    columns = table.shape[1]
    same = Box((0, 0), (kept, columns))
    yield Piece(same, table, same)
    if size > kept:
        drawn = Box((kept, 0), (size - kept, columns))
        yield Piece(drawn, _drawn(table, kept, size - kept, seed), Box.whole(drawn.sizes))
    if padded > size:
        padding = Box((size, 0), (padded - size, columns))
        yield Piece(padding, None, padding)


def _drawn(table: StoredTensor, kept: int, count: int, seed: int) -> Callable[[], Tensor]:
    """Rows as a run with `training.grow_vocabulary` would start with, made when they are first asked for."""

    @functools.cache
    def make() -> Tensor:
        rows = MappedFiles().read(table, Box.whole((kept, table.shape[1])))
        return draw_rows(rows, count, seed).to(table.dtype)

    return make
