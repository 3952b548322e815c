"""Back ends against a loop over positions, in values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron_aqaa.model.alibi import SqrtAlibiBias, sqrt_alibi_slopes
from megatron_aqaa.model.attention import Backend, explicit_attention, reference_attention, sdpa_attention

BACKENDS = [reference_attention, explicit_attention, sdpa_attention]
HEADS, GROUPS, WIDTH, BATCH = 6, 2, 4, 2
SLOPES = sqrt_alibi_slopes(HEADS)


def naive(query: Tensor, key: Tensor, value: Tensor, documents: Tensor) -> Tensor:
    """The definition: scores = q·k/√d − slope[h]·√(i − j) over keys of the same document, j ≤ i."""
    out = torch.zeros_like(query)
    first = key.shape[0] - query.shape[0]
    for b in range(BATCH):
        for h in range(HEADS):
            group = h // (HEADS // GROUPS)
            for row in range(query.shape[0]):
                i = first + row
                keys = [j for j in range(i + 1) if documents[b, j] == documents[b, i]]
                scores = [
                    query[row, b, h] @ key[j, b, group] / math.sqrt(WIDTH) - SLOPES[h] * math.sqrt(i - j) for j in keys
                ]
                weights = torch.stack(scores).softmax(0)
                out[row, b, h] = sum(w * value[j, b, group] for w, j in zip(weights, keys, strict=True))
    return out


def inputs(num_queries: int, num_keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Non-contiguous views, as Megatron's split of the fused projection gives them."""
    torch.manual_seed(num_queries)
    fused = torch.randn(num_keys, BATCH, GROUPS, (HEADS // GROUPS + 2) * WIDTH, dtype=dtype)
    query, key, value = fused.split([HEADS // GROUPS * WIDTH, WIDTH, WIDTH], dim=3)
    query = query.reshape(num_keys, BATCH, HEADS, WIDTH)[num_keys - num_queries :]
    return [query.requires_grad_(), key.requires_grad_(), value.requires_grad_()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_queries", "num_keys"), [(9, 9), (3, 9), (1, 9), (1, 1)])
def test_values_and_gradients_are_those_of_the_definition(backend: Backend, num_queries: int, num_keys: int) -> None:
    query, key, value = inputs(num_queries, num_keys)
    documents = torch.tensor([[-1, -1, 0, 0, 1, 1, 1, 2, 2], [0] * 9])[:, :num_keys]
    bias = SqrtAlibiBias(SLOPES)(query, num_keys, documents)
    weights = torch.randn(num_queries, BATCH, HEADS, WIDTH, dtype=torch.float64)

    out = backend(query, key, value, bias, WIDTH**-0.5)
    expected = naive(query, key, value, documents)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad((out * weights).sum(), [query, key, value])
    expected_gradients = torch.autograd.grad((expected * weights).sum(), [query, key, value])
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("backend", [explicit_attention, sdpa_attention])
def test_bf16_is_no_worse_than_twice_the_plain_form(backend: Backend) -> None:
    """The plain form: the same sums in bf16, straight from the definition."""
    query, key, value = inputs(64, 64)
    exact = reference_attention(query, key, value, SqrtAlibiBias(SLOPES)(query, 64, None), WIDTH**-0.5)
    q, k, v = (x.detach().bfloat16() for x in (query, key, value))
    bias = SqrtAlibiBias(SLOPES)(q, 64, None)
    repeated = [x.repeat_interleave(HEADS // GROUPS, 2) for x in (k, v)]
    scores = torch.einsum("qbhd,kbhd->bhqk", q, repeated[0]) * WIDTH**-0.5 + bias
    plain = torch.einsum("bhqk,kbhd->qbhd", scores.softmax(-1), repeated[1])
    ours = backend(q, k, v, bias, WIDTH**-0.5)
    assert (ours.double() - exact).abs().mean() <= 2 * (plain.double() - exact).abs().mean()


def test_a_later_key_or_another_document_has_no_influence() -> None:
    query, key, value = inputs(6, 6)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]] * BATCH)
    bias = SqrtAlibiBias(SLOPES)(query, 6, documents)
    out = explicit_attention(query, key, value, bias, 0.5)
    (gradient,) = torch.autograd.grad(out[3].sum(), value)
    assert gradient[:3].abs().sum() == 0  # the other document
    assert gradient[4:].abs().sum() == 0  # later
    assert gradient[3].abs().sum() > 0
