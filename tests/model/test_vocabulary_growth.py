"""New rows have the distribution of the text rows; the text rows are untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_aqaa.model import build_model
from megatron_aqaa.model.table_shards import table_shards
from megatron_aqaa.model.vocabulary_growth import grow_tables, grow_vocabulary
from megatron_aqaa.vocabulary import Vocabulary
from tests.model.sizes import VOCABULARY, variant

TEXT_SIZE, PADDED = 400, 5632
GROWN = Vocabulary.for_text(TEXT_SIZE)


def text_table(rows: int = TEXT_SIZE + 12, hidden_size: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    """[rows, H] with columns that depend on each other and means that are not zero."""
    random = torch.Generator().manual_seed(3)
    mix = torch.randn(hidden_size, hidden_size, generator=random)
    return (torch.randn(rows, hidden_size, generator=random) @ mix + torch.arange(hidden_size)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_text_rows_are_kept_and_padding_is_zero(dtype: torch.dtype) -> None:
    table = text_table(dtype=dtype)
    grown = grow_vocabulary(table, GROWN, PADDED)
    assert grown.shape == (PADDED, table.shape[1]) and grown.dtype == dtype
    assert torch.equal(grown[:TEXT_SIZE], table[:TEXT_SIZE])
    assert not grown[GROWN.size :].any()
    assert grown[TEXT_SIZE : GROWN.size].any(1).all()
    assert not torch.equal(grown[TEXT_SIZE : TEXT_SIZE + 12], table[TEXT_SIZE:])  # padding of the text model


def test_mean_and_covariance_are_those_of_the_text_rows() -> None:
    """Within five standard errors of 5,122 draws."""
    text = text_table(TEXT_SIZE).double()
    new = grow_vocabulary(text, GROWN, PADDED)[TEXT_SIZE : GROWN.size]
    covariance, count = text.T.cov(), len(new)
    deviation = covariance.diag().sqrt()
    assert ((new.mean(0) - text.mean(0)).abs() < 5 * deviation / count**0.5).all()
    spread = (deviation[:, None] ** 2 * deviation**2 + covariance**2) / count  # variance of a sample covariance
    assert ((new.T.cov() - covariance).abs() < 5 * spread.sqrt()).all()


def test_new_rows_stay_in_the_space_of_the_text_rows() -> None:
    """Fewer directions than columns, fewer rows than columns: no matrix here has an inverse."""
    random = torch.Generator().manual_seed(5)
    directions, centre = torch.randn(2, 32, generator=random), torch.randn(32, generator=random)
    vocabulary = Vocabulary(text_size=20, linguistic_size=4, semantic_size=4, size=30, audio_start=28, audio_end=29)
    grown = grow_vocabulary(torch.randn(20, 2, generator=random) @ directions + centre, vocabulary, 32)
    new = grown[20:30] - centre
    inside = new @ torch.linalg.pinv(directions) @ directions
    torch.testing.assert_close(inside, new, rtol=1e-4, atol=1e-4)
    assert new.std(0).min() > 0.01


def test_the_seed_decides() -> None:
    table = text_table()
    grown = grow_vocabulary(table, GROWN, PADDED, seed=1)
    assert torch.equal(grow_vocabulary(table, GROWN, PADDED, seed=1), grown)
    assert not torch.equal(grow_vocabulary(table, GROWN, PADDED, seed=2), grown)


def test_embedding_and_head_are_drawn_together() -> None:
    embedding, head = text_table(), text_table().flip(1) * 0.5
    together = grow_vocabulary(torch.cat([embedding, head], 1), GROWN, PADDED)
    apart = torch.cat([grow_vocabulary(table, GROWN, PADDED) for table in (embedding, head)], 1)
    torch.testing.assert_close(apart, together)


def test_a_table_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="a table of 300 rows cannot be grown for vocabulary.text_size = 400"):
        grow_vocabulary(text_table(300), GROWN, PADDED)
    broken = text_table()
    broken[7, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        grow_vocabulary(broken, GROWN, PADDED)


@pytest.mark.parametrize("untied", [True, False])
def test_tables_of_a_model(one_process: None, untied: bool) -> None:
    model = build_model(variant(untie_embeddings_and_output_weights=untied), VOCABULARY)[0]
    before = [shard.weight.detach().clone() for shard in table_shards(model)]
    assert len(before) == 1 + untied
    grow_tables(model, VOCABULARY, seed=4)
    for shard, table in zip(table_shards(model), before, strict=True):
        assert torch.equal(shard.weight, grow_vocabulary(table, VOCABULARY, len(table), seed=4))
