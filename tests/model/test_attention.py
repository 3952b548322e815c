"""Every back end against a loop over positions and against the reference, in values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron_aqaa.model.alibi import SqrtAlibi, sqrt_alibi_slopes
from megatron_aqaa.model.attention import Backend, ReferenceBackend
from megatron_aqaa.model.explicit_attention import ExplicitBackend
from megatron_aqaa.platform import zigzag_shard
from tests.model.attention_forms import BACKENDS, documents, inputs, uncompiled_flex_backend, with_gradients

HEADS, GROUPS, WIDTH, BATCH = 6, 2, 4, 2
RULE = SqrtAlibi(sqrt_alibi_slopes(HEADS))
OURS = {"explicit": ExplicitBackend(RULE), "flex": uncompiled_flex_backend(RULE)}


def naive(query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor) -> Tensor:
    """The definition: scores = q·k/√d − slope[h]·√(i − j) over keys of the same document, j ≤ i."""
    out = torch.zeros_like(query)
    first = key.shape[0] - query.shape[0]
    for b in range(BATCH):
        for h in range(HEADS):
            group = h // (HEADS // GROUPS)
            for row in range(query.shape[0]):
                i = first + row
                keys = [j for j in range(i + 1) if document_ids[b, j] == document_ids[b, i]]
                scores = [
                    query[row, b, h] @ key[j, b, group] / math.sqrt(WIDTH) - RULE.slopes[h] * math.sqrt(i - j)
                    for j in keys
                ]
                weights = torch.stack(scores).softmax(0)
                out[row, b, h] = sum(w * value[j, b, group] for w, j in zip(weights, keys, strict=True))
    return out


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize(("num_queries", "num_keys"), [(9, 9), (3, 9), (1, 9), (1, 1)])
def test_values_and_gradients_are_those_of_the_definition(kind: str, num_queries: int, num_keys: int) -> None:
    tensors = inputs(num_queries, num_keys)
    document_ids = torch.tensor([[-1, -1, 0, 0, 1, 1, 1, 2, 2], [0] * 9])[:, :num_keys]
    expected = with_gradients(lambda q, k, v, ids, _: naive(q, k, v, ids), tensors, document_ids)
    torch.testing.assert_close(with_gradients(BACKENDS[kind](RULE), tensors, document_ids, WIDTH**-0.5), expected)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(301, 301), (128, 128), (77, 190), (1, 190), (2, 129)])
def test_more_than_one_block_is_as_the_reference(kind: str, packed: bool, num_queries: int, num_keys: int) -> None:
    tensors, document_ids = inputs(num_queries, num_keys), documents(num_keys) if packed else None
    expected = with_gradients(ReferenceBackend(RULE), tensors, document_ids)
    torch.testing.assert_close(with_gradients(OURS[kind], tensors, document_ids), expected)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_later_key_or_another_document_has_no_influence(kind: str) -> None:
    query, key, value = inputs(6, 6)
    out = BACKENDS[kind](RULE)(query, key, value, torch.tensor([[0, 0, 0, 1, 1, 1]] * BATCH), 0.5)
    (gradient,) = torch.autograd.grad(out[3].sum(), value)
    assert gradient[:3].abs().sum() == 0  # the other document
    assert gradient[4:].abs().sum() == 0  # later
    assert gradient[3].abs().sum() > 0


@pytest.mark.parametrize("kind", BACKENDS)
def test_documents_of_one_token_give_their_own_value(kind: str) -> None:
    query, key, value = inputs(5, 5)
    out, grad_query, grad_key, _ = with_gradients(
        BACKENDS[kind](RULE), [query, key, value], torch.arange(5).repeat(2, 1)
    )
    torch.testing.assert_close(out, value.repeat_interleave(HEADS // GROUPS, 2))
    for gradient in (grad_query, grad_key):  # a softmax over one key is constant
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_padding_stays_finite_and_keeps_to_itself(kind: str, dtype: torch.dtype) -> None:
    """A padded row attends to padding, itself among it: no row of the softmax is empty."""
    tensors = inputs(140, 140, dtype=dtype)
    document_ids = torch.tensor([[0] * 7 + [-1] * 133, [-1] * 140])
    whole = with_gradients(BACKENDS[kind](RULE), tensors, document_ids)
    assert all(result.isfinite().all() for result in whole)
    alone = BACKENDS[kind](RULE)(*(x[:7, :1] for x in tensors), None, 0.5)
    torch.testing.assert_close(whole[0][:7, :1], alone)


@pytest.mark.parametrize("kind", BACKENDS)
def test_tensor_parallel_ranks_compute_their_heads(kind: str) -> None:
    tensors, document_ids = inputs(9, 9), documents(9)
    whole = BACKENDS[kind](RULE)(*tensors, document_ids, 0.5)
    for rank in range(2):
        part = BACKENDS[kind](SqrtAlibi(RULE.slopes.chunk(2)[rank]))
        mine = part(*(x.chunk(2, 2)[rank] for x in tensors), document_ids, 0.5)
        torch.testing.assert_close(mine, whole.chunk(2, 2)[rank])


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize(("length", "size"), [(4, 2), (12, 3), (516, 2)])
def test_context_parallel_ranks_compute_their_zigzag_part(kind: str, length: int, size: int) -> None:
    (query, key, value), document_ids = inputs(length, length), documents(length)
    whole = BACKENDS[kind](RULE)(query, key, value, document_ids, 0.5)
    for rank in range(size):
        part = BACKENDS[kind](SqrtAlibi(RULE.slopes, rank, size))
        mine = part(zigzag_shard(query, 0, rank, size), key, value, document_ids, 0.5)
        torch.testing.assert_close(mine, zigzag_shard(whole, 0, rank, size))


@pytest.mark.parametrize("kind", BACKENDS)
def test_zero_slopes_are_plain_causal_attention(kind: str) -> None:
    tensors = inputs(70, 70)
    out = BACKENDS[kind](SqrtAlibi(torch.zeros(HEADS, dtype=torch.float64)))(*tensors, None, 0.5)
    q, k, v = (x.permute(1, 2, 0, 3) for x in tensors)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5, enable_gqa=True)
    torch.testing.assert_close(out, expected.permute(2, 0, 1, 3))


def plain(query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor | None, scale: float) -> Tensor:
    """The definition in the dtype of its inputs throughout."""
    key, value = (x.repeat_interleave(HEADS // GROUPS, 2) for x in (key, value))
    bias = RULE.bias(query, key.shape[0], document_ids).to(query.dtype)
    scores = torch.einsum("qbhd,kbhd->bhqk", query, key) * scale + bias
    return torch.einsum("bhqk,kbhd->qbhd", scores.softmax(-1), value)


def errors(backend: Backend, tensors: list[Tensor], document_ids: Tensor | None, exact: list[Tensor]) -> Tensor:
    """Mean and largest error of values and gradients: [4, 2]."""
    results = with_gradients(backend, tensors, document_ids)
    differences = [(x.double() - y).abs() for x, y in zip(results, exact, strict=True)]
    return torch.tensor([[difference.mean(), difference.max()] for difference in differences])


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("num_queries", "num_keys", "width"), [(256, 256, 32), (333, 333, 64), (40, 200, 16)])
def test_low_precision_errs_at_most_twice_as_much_as_the_plain_form(
    kind: str, dtype: torch.dtype, packed: bool, num_queries: int, num_keys: int, width: int
) -> None:
    tensors = inputs(num_queries, num_keys, width=width, dtype=dtype)
    document_ids = documents(num_keys) if packed else None
    exact = with_gradients(
        ReferenceBackend(RULE), [x.detach().double().requires_grad_() for x in tensors], document_ids
    )
    bound = 2 * errors(plain, tensors, document_ids, exact)
    ours = errors(OURS[kind], tensors, document_ids, exact)
    assert (ours[:, 0] <= bound[:, 0]).all()
    if kind != "flex":  # its single largest error is that of PyTorch's dense form, not of the kernel that trains
        assert (ours[:, 1] <= bound[:, 1]).all()
