"""Blocks of rows: what they leave out, and what is kept between layers and micro-batches."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa.model.alibi import SqrtAlibi, sqrt_alibi_slopes
from megatron_aqaa.model.explicit_attention import ROWS, ExplicitBackend
from tests.model.attention_forms import inputs, with_gradients

SLOPES = sqrt_alibi_slopes(6)


def num_keys_of_blocks(backend: ExplicitBackend, num_queries: int, num_keys: int) -> list[int]:
    blocks = backend._folded(torch.zeros(num_queries, 1, 6, 4), num_keys, None)
    assert sum(block.bias.shape[2] for block in blocks) == num_queries
    return [block.bias.shape[3] for block in blocks]


def test_a_block_of_rows_leaves_out_the_keys_after_its_last_query() -> None:
    assert num_keys_of_blocks(ExplicitBackend(SqrtAlibi(SLOPES)), 3 * ROWS, 3 * ROWS) == [ROWS, 2 * ROWS, 3 * ROWS]
    assert num_keys_of_blocks(ExplicitBackend(SqrtAlibi(SLOPES)), ROWS + 1, ROWS + 9) == [ROWS + 8, ROWS + 9]
    assert num_keys_of_blocks(ExplicitBackend(SqrtAlibi(SLOPES, 0, 2)), 2 * ROWS, 4 * ROWS) == [ROWS, 4 * ROWS]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_layout_follow_the_query(dtype: torch.dtype) -> None:
    results = with_gradients(ExplicitBackend(SqrtAlibi(SLOPES)), inputs(70, 70, dtype=dtype), None)
    assert {result.dtype for result in results} == {dtype}
    assert results[0].is_contiguous()  # flattening the heads copies nothing


def test_an_empty_batch_is_empty() -> None:
    out = ExplicitBackend(SqrtAlibi(SLOPES))(*inputs(5, 5, batch=0), None, 0.5)
    assert out.shape == (5, 0, 6, 4)


def test_square_roots_are_made_once_for_micro_batches_of_one_shape() -> None:
    backend, query = ExplicitBackend(SqrtAlibi(SLOPES)), torch.zeros(6, 2, 6, 4)
    first = backend._causal(query, 6, None)
    for ids in (torch.zeros(2, 6), torch.ones(2, 6), None):
        backend._folded(query, 6, ids)
        assert backend._causal(query, 6, None) is first
