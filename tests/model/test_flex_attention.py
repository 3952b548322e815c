"""FlexAttention: its block mask against the pairs that it stands for, how often it compiles, the kernel on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

from megatron_aqaa.model.alibi import SqrtAlibi, sqrt_alibi_slopes
from megatron_aqaa.model.attention import Backend, ReferenceBackend
from megatron_aqaa.model.flex_attention import BLOCK, FlexBackend, document_block_mask, sqrt_alibi_score_mod
from megatron_aqaa.platform import zigzag_shard
from tests.model.attention_forms import documents, inputs, packed, uncompiled_flex, with_gradients

RULE = SqrtAlibi(sqrt_alibi_slopes(6))
RISING = torch.tensor([packed([100, 28, 128, 300, 1, 83]), packed([640])])  # [2, 640]
POSITIONS: dict[str, Tensor] = {
    "whole": torch.arange(640),
    "last": torch.arange(500, 640),
    "zig-zag": zigzag_shard(torch.arange(640), 0, 0, 2),
}


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Each test starts without compiled code: more than eight variants of it in one process are an error."""
    yield
    torch.compiler.reset()


def allowed_pairs(positions: Tensor, num_keys: int, document_ids: Tensor | None) -> Tensor:
    """[B, Sq, Sk] by definition."""
    causal = torch.arange(num_keys) <= positions[:, None]
    if document_ids is None:
        return causal[None]
    return causal & (document_ids[:, positions, None] == document_ids[:, None])


def blocks(counts: Tensor | None, indices: Tensor | None) -> Tensor:
    """What a block mask lists, [B, Q, K] bool."""
    assert counts is not None and indices is not None
    listed = torch.zeros(indices[:, 0].shape, dtype=torch.bool)
    for b, row in torch.cartesian_prod(*map(torch.arange, listed.shape[:2])).tolist():
        listed[b, row, indices[b, 0, row, : counts[b, 0, row]].long()] = True
    return listed


def partial_and_full(mask: BlockMask) -> tuple[Tensor, Tensor]:
    return blocks(mask.kv_num_blocks, mask.kv_indices), blocks(mask.full_kv_num_blocks, mask.full_kv_indices)


@pytest.mark.parametrize("document_ids", [None, RISING], ids=["one document", "packed"])
@pytest.mark.parametrize("kind", POSITIONS)
def test_blocks_are_those_of_pytorchs_dense_way(kind: str, document_ids: Tensor | None) -> None:
    mask = document_block_mask(POSITIONS[kind].int(), 640, document_ids)
    batch = 1 if document_ids is None else 2
    dense = create_block_mask(mask.mask_mod, batch, None, len(POSITIONS[kind]), 640, device="cpu")
    for ours, theirs in zip(partial_and_full(mask), partial_and_full(dense), strict=True):
        assert torch.equal(ours, theirs)
    assert mask.shape == dense.shape


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("seed", range(3))
def test_ids_in_any_order_lose_no_pair_and_gain_none(kind: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, 3, (2, 640 // 64), generator=random).repeat_interleave(64, 1).roll(seed, 1)
    positions = POSITIONS[kind]
    mask, pairs = document_block_mask(positions.int(), 640, ids), allowed_pairs(positions, 640, ids)
    assert torch.equal(create_mask(mask.mask_mod, 2, None, len(positions), 640, device="cpu")[:, 0], pairs)
    partial, full = (_pairs(part, pairs.shape) for part in partial_and_full(mask))
    assert not (pairs & ~(partial | full)).any()
    assert not (full & ~pairs).any()
    assert not (partial & full).any()


def _pairs(listed: Tensor, shape: torch.Size) -> Tensor:
    return listed.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, : shape[1], : shape[2]]


def test_scores_by_the_rule() -> None:
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64)
    score_mod = sqrt_alibi_score_mod(slopes, torch.tensor([7.0, 8000.0], dtype=torch.float64))
    one = torch.tensor(1.0, dtype=torch.float64)
    for head, query, key, distance in [(0, 0, 7, 0), (0, 0, 6, 1), (1, 0, 3, 4), (1, 1, 0, 8000), (0, 1, 7999, 1)]:
        got = score_mod(one, *(torch.tensor(x) for x in (0, head, query, key)))
        assert got.item() == pytest.approx(1.0 - slopes[head].item() * distance**0.5, rel=1e-14)


def test_zero_slopes_take_no_score_rule() -> None:
    backend = FlexBackend(SqrtAlibi(torch.zeros(6)), uncompiled_flex)
    assert backend._score_mod(torch.zeros(4, 1, 6, 4), 4, None) is None
    assert FlexBackend(RULE, uncompiled_flex)._score_mod(torch.zeros(4, 1, 6, 4), 4, None) is not None


def test_new_documents_and_more_lengths_do_not_compile_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for a GPU, backward included: once for the first length, once for all others."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)
    counter = CompileCounterWithBackend("aot_eager")
    backend = FlexBackend(RULE, torch.compile(flex_attention, backend=counter, fullgraph=True))
    for length, shift, graphs in [(140, 0, 1), (140, 9, 1), (150, 0, 2), (160, 3, 2)]:
        tensors, ids = inputs(length, length), documents(length).roll(shift, 1)
        expected = with_gradients(ReferenceBackend(RULE), tensors, ids)
        torch.testing.assert_close(with_gradients(backend, tensors, ids), expected)
        assert counter.frame_count == graphs


def on_gpu(num_queries: int, num_keys: int, dtype: torch.dtype, **sizes: int) -> list[Tensor]:
    return inputs(num_queries, num_keys, dtype=dtype, device="cuda", **{"width": 64, **sizes})


def double(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in tensors]


def plain(query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor | None, scale: float) -> Tensor:
    """The definition in the dtype of its inputs throughout."""
    key, value = (x.repeat_interleave(query.shape[2] // key.shape[2], 2) for x in (key, value))
    scores = torch.einsum("qbhd,kbhd->bhqk", query, key) * scale
    scores = scores + RULE.bias(query, key.shape[0], document_ids).to(query.dtype)
    return torch.einsum("bhqk,kbhd->qbhd", scores.softmax(-1), value)


def mean_errors(backend: Backend, tensors: list[Tensor], ids: Tensor | None, exact: list[Tensor]) -> Tensor:
    results = with_gradients(backend, tensors, ids, 0.125)
    return torch.stack([(x.double() - y).abs().mean() for x, y in zip(results, exact, strict=True)])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1024, 1024), (777, 777), (129, 129), (2, 2), (77, 1000)])
def test_compiled_errs_at_most_twice_as_much_as_the_plain_form(
    dtype: torch.dtype, is_packed: bool, num_queries: int, num_keys: int
) -> None:
    tensors = on_gpu(num_queries, num_keys, dtype)
    ids = documents(num_keys).cuda() if is_packed else None
    exact = with_gradients(ReferenceBackend(RULE), double(tensors), ids, 0.125)
    ours, bound = (mean_errors(form, tensors, ids, exact) for form in (FlexBackend(RULE), plain))
    assert (ours <= 2 * bound + 1e-7).all()  # of two tokens the plain form may hit some results exactly


@pytest.mark.gpu
@pytest.mark.parametrize("rank", [0, 1])
def test_compiled_zigzag_part_is_that_of_the_whole(rank: int) -> None:
    query, key, value = on_gpu(1004, 1004, torch.float32)
    ids = documents(1004).cuda()
    whole = with_gradients(ReferenceBackend(RULE), double([query, key, value]), ids)
    part = FlexBackend(SqrtAlibi(RULE.slopes, rank, 2))
    mine = zigzag_shard(query.detach(), 0, rank, 2).requires_grad_()
    out = part(mine, key, value, ids, 0.5)
    torch.testing.assert_close(out.double(), zigzag_shard(whole[0], 0, rank, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_step_of_decoding_is_the_last_row_of_the_whole() -> None:
    tensors = on_gpu(300, 300, torch.float32)
    ids, backend = documents(300).cuda(), FlexBackend(RULE)
    whole = backend(*tensors, ids, 0.5)
    torch.testing.assert_close(backend(tensors[0][-1:], *tensors[1:], ids, 0.5), whole[-1:], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_zero_slopes_are_plain_causal_attention_compiled() -> None:
    tensors = on_gpu(300, 300, torch.float32)
    out = FlexBackend(SqrtAlibi(torch.zeros(6)))(*tensors, None, 0.5)
    q, k, v = (x.permute(1, 2, 0, 3) for x in tensors)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5, enable_gqa=True)
    torch.testing.assert_close(out, expected.permute(2, 0, 1, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [8, 16])
def test_heads_too_narrow_for_triton_work_too(width: int) -> None:
    tensors = on_gpu(70, 70, torch.float32, width=width)
    expected = ReferenceBackend(RULE)(*tensors, None, 0.5)
    torch.testing.assert_close(FlexBackend(RULE)(*tensors, None, 0.5), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_float64_stays_float64_on_a_gpu() -> None:
    tensors = on_gpu(70, 70, torch.float64)
    results = with_gradients(FlexBackend(RULE), tensors, documents(70).cuda())
    torch.testing.assert_close(results, with_gradients(ReferenceBackend(RULE), tensors, documents(70).cuda()))


@pytest.mark.gpu
def test_the_130b_shape_is_right_and_never_dense() -> None:
    """8,192 tokens, 96 heads in 8 groups: a dense bias or scores would take 12 GiB in bf16."""
    length, rule = 8192, SqrtAlibi(sqrt_alibi_slopes(96))
    query, key, value = on_gpu(length, length, torch.bfloat16, batch=1, heads=96, groups=8, width=128)
    ids = torch.tensor([packed([1, 127, 128, 3000, 1, 4000], padding_right=935)]).cuda()
    rows = torch.tensor([0, 1, 127, 128, 255, 256, 3255, 3256, 3257, 7256, 7257, 8191]).cuda()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = FlexBackend(rule)(query, key, value, ids, 128**-0.5)
    out.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 2 << 30
    k, v = (x[:, 0].detach().float().repeat_interleave(12, 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query[rows, 0].detach().float(), k) * 128**-0.5
    bias = _bias_of_rows(rule, rows, ids[0])
    expected = torch.einsum("hqk,khd->qhd", (scores + bias).softmax(-1), v)
    torch.testing.assert_close(out[rows, 0].float(), expected, rtol=2e-2, atol=2e-2)


def _bias_of_rows(rule: SqrtAlibi, rows: Tensor, ids: Tensor) -> Tensor:
    distance = rows[:, None] - torch.arange(len(ids), device=rows.device)
    bias = -rule.slopes.to(rows.device, torch.float32)[:, None, None] * distance.clamp_min(0).sqrt()
    return bias.masked_fill((distance < 0) | (ids[rows, None] != ids), -torch.inf)
