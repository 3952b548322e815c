"""Growing a text model: rows for audio codes and markers, drawn from the distribution of the text rows.

A row of zeros or of small noise lies far from every text row: its logit is then larger or smaller than that of any
text token, and the first steps go into repairing that. Rows drawn from the Gaussian with the text rows' mean and
covariance start where text tokens are (J. Hewitt, "Initializing New Word Embeddings for Pretrained Language Models",
2021).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_aqaa.model.table_shards import TableShard, table_shards
from megatron_aqaa.vocabulary import Vocabulary

_BLOCK_ROWS = 2048  # text rows at a time: 40 MiB of normals for 5,122 new rows


@torch.no_grad()
def grow_vocabulary(table: Tensor, vocabulary: Vocabulary, padded_size: int, seed: int = 0) -> Tensor:
    """Table of the merged vocabulary, made from a text model's embedding or output head.

    The result depends on the table and the seed alone, not on the parallel layout. Grown with one seed, embedding and
    head are a draw from their joint distribution: a new token's two rows belong together as those of a text token do.

    Args:
        table: [at least vocabulary.text_size, H], all rows of the text model; further rows are its padding.
        vocabulary: id layout of the result.
        padded_size: rows of the result, at least `vocabulary.size`.
        seed: of the new rows.

    Returns:
        [padded_size, H] in dtype and on device of `table`: rows below `text_size` bit for bit, rows up to `size`
        drawn, the rest (never in a softmax) zero.

    Raises:
        ValueError: the table has fewer rows than the vocabulary has text ids, or holds NaN or infinity.
    """
    text_size, hidden_size = vocabulary.text_size, table.shape[1]
    if len(table) < text_size or text_size < 2:
        raise ValueError(
            f"a table of {len(table)} rows cannot be grown for vocabulary.text_size = {text_size}: take the vocabulary "
            "that was made for this text model"
        )
    assert padded_size >= vocabulary.size
    grown = table.new_zeros(padded_size, hidden_size)
    grown[:text_size] = table[:text_size]
    grown[text_size : vocabulary.size] = draw_rows(table[:text_size], vocabulary.size - text_size, seed)
    return grown


def draw_rows(rows: Tensor, count: int, seed: int) -> Tensor:
    """[count, H], at least fp32, from the Gaussian with mean and covariance of `rows` [V, H], read block by block.

    `(rows − mean)ᵀ g / √(V − 1)` with V independent standard normals g has exactly their sample covariance. No
    [H, H] matrix is formed or factored, which at H = 12288 and with V near or below H would need a remedy for a
    singular one. Costs 2·V·H FLOPs a row. Normals come from the CPU's generator, the same for every device.
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    mean = torch.stack([block.sum(0, dtype=wide) for block in rows.split(_BLOCK_ROWS)]).sum(0).div_(len(rows))
    if not mean.isfinite().all():
        raise ValueError("the text rows hold NaN or infinity: check the checkpoint that the vocabulary grows from")
    draws = torch.zeros(count, rows.shape[1], dtype=wide, device=rows.device)
    for block in rows.split(_BLOCK_ROWS):
        normals = torch.randn(len(block), count, generator=generator).to(draws)
        draws.addmm_(normals.t(), block.to(wide) - mean)
    return draws.mul_((len(rows) - 1) ** -0.5).add_(mean)


@torch.no_grad()
def grow_tables(model: GPTModel, vocabulary: Vocabulary, seed: int = 0) -> None:
    """Replace all rows but the text rows in embedding and head of `model`, whose text rows are those of a text model.

    Every tensor-parallel rank computes all new rows from the gathered table and keeps its own: equal rows at every
    layout, to the last bit, for a second of work.
    """
    for shard in table_shards(model):
        grown = grow_vocabulary(table := _gathered(shard), vocabulary, len(table), seed)
        shard.weight.copy_(grown[shard.first_row : shard.first_row + len(shard.weight)])


def _gathered(shard: TableShard) -> Tensor:
    """[padded V, H]: the rows of all tensor-parallel ranks."""
    weight, size = shard.weight.detach(), shard.tp_group.size()
    table = weight.new_empty(size * weight.shape[0], weight.shape[1])
    dist.all_gather_into_tensor(table, weight, group=shard.tp_group)
    return table
