"""Slopes by hand and by the published formula; positions and the dense bias against loops."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_aqaa.model.alibi import SqrtAlibi, sqrt_alibi_bias, sqrt_alibi_slopes


def test_slopes_of_the_130b_model() -> None:
    slopes = sqrt_alibi_slopes(96)
    expected = [2 ** (-0.125 * k) for k in range(1, 65)] + [2 ** (-0.0625 * (2 * j + 1)) for j in range(32)]
    torch.testing.assert_close(slopes, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [(1, [-8]), (2, [-4, -8]), (3, [-4, -8, -2]), (8, [-1, -2, -3, -4, -5, -6, -7, -8]), (6, [-2, -4, -6, -8, -1, -3])],
)
def test_slopes_by_hand(heads: int, exponents: list[int]) -> None:
    assert sqrt_alibi_slopes(heads).tolist() == [2.0**exponent for exponent in exponents]


@pytest.mark.parametrize("heads", range(1, 130))
def test_slopes_follow_the_published_rule(heads: int) -> None:
    n = max(2**k for k in range(8) if 2**k <= heads)
    published = [2.0 ** (-8 * k / n) for k in range(1, n + 1)]
    published += [2.0 ** (-4 * (2 * j + 1) / n) for j in range(heads - n)]
    torch.testing.assert_close(
        sqrt_alibi_slopes(heads), torch.tensor(published, dtype=torch.float64), rtol=1e-15, atol=0.0
    )


def test_slopes_of_no_head_are_refused() -> None:
    with pytest.raises(ValueError, match="0 heads"):
        sqrt_alibi_slopes(0)


def test_bias_by_a_loop() -> None:
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64)
    queries, keys = [4, 1, 7], [0, 4, 9, 3]
    bias = sqrt_alibi_bias(slopes, torch.tensor(queries), torch.tensor(keys))
    for head, slope in enumerate([0.5, 0.25]):
        for i, query in enumerate(queries):
            for j, key in enumerate(keys):
                expected = -slope * math.sqrt(query - key) if key <= query else -math.inf
                assert bias[head, i, j].item() == pytest.approx(expected)


def test_queries_are_the_last_keys_or_this_ranks_zigzag_chunks() -> None:
    slopes = torch.tensor([0.5])
    assert SqrtAlibi(slopes).query_positions(4, 4).tolist() == [0, 1, 2, 3]
    assert SqrtAlibi(slopes).query_positions(2, 5).tolist() == [3, 4]
    assert SqrtAlibi(slopes, 0, 2).query_positions(4, 8).tolist() == [0, 1, 6, 7]
    assert SqrtAlibi(slopes, 1, 2).query_positions(4, 8).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(("size", "num_queries", "num_keys"), [(1, 5, 4), (2, 1, 8), (2, 4, 4)])
def test_queries_that_do_not_fit_the_keys_are_refused(size: int, num_queries: int, num_keys: int) -> None:
    with pytest.raises(ValueError, match=f"{num_queries} queries .* {num_keys} keys"):
        SqrtAlibi(torch.tensor([0.5]), 0, size).query_positions(num_queries, num_keys)


@pytest.mark.parametrize(("num_queries", "rank", "size"), [(8, 0, 1), (3, 0, 1), (4, 1, 2)])
def test_documents_are_folded_into_the_bias(num_queries: int, rank: int, size: int) -> None:
    rule, ids = SqrtAlibi(torch.tensor([0.5, 0.25]), rank, size), [[0, 0, 1, 1, 1, 7, -1, -1], [0] * 8]
    bias = rule.bias(torch.zeros(num_queries, 2, 2, 4), 8, torch.tensor(ids))
    for row, slope, (place, i), j in (
        (row, slope, query, j)
        for row in range(2)
        for slope in range(2)
        for query in enumerate(rule.query_positions(num_queries, 8).tolist())
        for j in range(8)
    ):
        seen = j <= i and ids[row][i] == ids[row][j]
        expected = -[0.5, 0.25][slope] * math.sqrt(i - j) if seen else -math.inf
        assert bias[row, slope, place, j].item() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_bias_is_never_narrower_than_fp32(dtype: torch.dtype) -> None:
    bias = SqrtAlibi(sqrt_alibi_slopes(2)).bias(torch.zeros(4, 3, 2, 8, dtype=dtype), 4)
    assert bias.dtype == torch.promote_types(dtype, torch.float32)
