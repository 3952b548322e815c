"""Slopes by hand and by the published formula; the bias against a loop over positions."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_aqaa.model.alibi import SqrtAlibiBias, sqrt_alibi_bias, sqrt_alibi_slopes


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


def test_bias_by_a_loop() -> None:
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64)
    queries, keys = [4, 1, 7], [0, 4, 9, 3]
    bias = sqrt_alibi_bias(slopes, torch.tensor(queries), torch.tensor(keys))
    for head, slope in enumerate([0.5, 0.25]):
        for i, query in enumerate(queries):
            for j, key in enumerate(keys):
                expected = -slope * math.sqrt(query - key) if key <= query else -math.inf
                assert bias[head, i, j].item() == pytest.approx(expected)


def naive(slopes: list[float], queries: list[int], documents: torch.Tensor) -> torch.Tensor:
    rows = [
        [[allowed(slope, i, j, row) for j in range(len(row))] for i in queries] for row in documents for slope in slopes
    ]
    return torch.tensor(rows).view(len(documents), len(slopes), len(queries), -1)


def allowed(slope: float, query: int, key: int, row: torch.Tensor) -> float:
    return -slope * math.sqrt(query - key) if key <= query and row[query] == row[key] else -math.inf


def test_documents_are_folded_in_and_changes_of_the_ids_are_noticed() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 0, 0, 0, 0, 0]])
    bias, query = SqrtAlibiBias(torch.tensor([0.5, 0.25])), torch.zeros(6, 2, 2, 4)
    slopes, everything = [0.5, 0.25], list(range(6))
    torch.testing.assert_close(bias(query, 6, documents), naive(slopes, everything, documents))
    assert bias(query, 6, documents.clone()) is bias(query, 6, documents)  # equal values: one bias for all layers
    documents[0, 1] = 1  # in place, the tensor object stays
    torch.testing.assert_close(bias(query, 6, documents), naive(slopes, everything, documents))
    torch.testing.assert_close(bias(query, 6, None), naive(slopes, everything, torch.zeros(2, 6)))


def test_the_queries_of_incremental_decoding_are_the_last_positions() -> None:
    documents = torch.tensor([[-1, -1, 0, 0, 0]])
    bias = SqrtAlibiBias(torch.tensor([0.5]))
    torch.testing.assert_close(bias(torch.zeros(2, 1, 1, 4), 5, documents), naive([0.5], [3, 4], documents))


def test_the_queries_of_context_parallelism_are_zigzag_chunks() -> None:
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    bias = SqrtAlibiBias(torch.tensor([0.5]), context_parallel_rank=1, context_parallel_size=2)
    torch.testing.assert_close(bias(torch.zeros(4, 1, 1, 4), 8, documents), naive([0.5], [2, 3, 4, 5], documents))


def test_shape_and_dtype_follow_the_query() -> None:
    bias = SqrtAlibiBias(sqrt_alibi_slopes(2))
    for length, batch, dtype in [
        (4, 3, torch.float32),
        (5, 3, torch.float32),
        (5, 1, torch.bfloat16),
        (5, 1, torch.float64),
    ]:
        result = bias(torch.zeros(length, batch, 2, 8, dtype=dtype), length, None)
        assert result.shape == (batch, 2, length, length)
        assert result.dtype == dtype
