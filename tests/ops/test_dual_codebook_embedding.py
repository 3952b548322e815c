"""Flat dual-codebook embedding: definition as a loop, eager reference, C++ on the CPU, CUDA where there is one."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa import ops
from megatron_aqaa.ops import library
from megatron_aqaa.ops.dual_codebook_embedding import dual_codebook_embedding_reference
from tests.ops.rounding import assert_rounded_once

VOCAB, LINGUISTIC, SEMANTIC, STOP = 40, 20, 26, 38  # 38, 39 are markers
RANGES = {"linguistic_start": LINGUISTIC, "semantic_start": SEMANTIC, "audio_stop": STOP}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BOTH_TABLES = {"type": True, "position": True}
# A GPU moves 16 bytes at a time: 12 columns are whole packets in fp32 and fp64 alone, 16 in every dtype, and 1032 in
# bf16 are more of them than a block has threads.
WIDTHS = [12, 16, 1032]


def tables(hidden=12, dtype=torch.float32, rows=VOCAB, type=False, position=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def table(count):
        return torch.randn(count, hidden, generator=generator, dtype=torch.float64).to(dtype)

    return table(rows), table(3) if type else None, table(5) if position else None


def ids(batch, length, seed=0):
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def by_definition(token_ids, weight, start, type_weight, position_weight, scale):
    batch, length = token_ids.shape
    out = torch.zeros(length, batch, weight.shape[1], dtype=torch.float64)
    for b in range(batch):
        run = 0
        for s in range(length):
            token = int(token_ids[b, s])
            is_audio = LINGUISTIC <= token < STOP
            run = run + 1 if is_audio else 0
            if not 0 <= token - start < len(weight):
                continue
            out[s, b] = weight[token - start]
            if type_weight is not None:
                out[s, b] += type_weight[0 if not is_audio else 1 if token < SEMANTIC else 2]
            if position_weight is not None and is_audio:
                out[s, b] += position_weight[(run - 1) % 5]
    return scale * out


def call(token_ids, weight, type_weight=None, position_weight=None, start=0, scale=1.0, **more):
    return ops.dual_codebook_embedding(
        token_ids,
        weight,
        start,
        vocab_size=VOCAB,
        type_weight=type_weight,
        group_position_weight=position_weight,
        scale=scale,
        **RANGES,
        **more,
    )


def call_reference(token_ids, weight, type_weight=None, position_weight=None, start=0, scale=1.0, group_positions=None):
    positions = group_positions
    if positions is None and position_weight is not None:
        positions = ops.positions_in_group(token_ids, LINGUISTIC, STOP)
    return dual_codebook_embedding_reference(
        token_ids, weight, type_weight, position_weight, positions, start, VOCAB, *RANGES.values(), scale
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", [{}, {"type": True}, {"position": True}, BOTH_TABLES])
@pytest.mark.parametrize("scale", [1.0, 0.5, 3.7])
@pytest.mark.parametrize("hidden", WIDTHS)
def test_forward_is_the_rounded_definition(device, dtype, given, scale, hidden):
    weights = tables(hidden, dtype, **given)
    token_ids = ids(3, 17)
    exact = by_definition(token_ids, weights[0], 0, *weights[1:], scale)
    magnitude = by_definition(
        token_ids, weights[0].abs(), 0, *(None if w is None else w.abs() for w in weights[1:]), scale
    )
    ours = call(token_ids.to(device), *(None if w is None else w.to(device) for w in weights), scale=scale).cpu()
    eager = call_reference(token_ids, *weights, scale=scale)
    assert ours.shape == (17, 3, hidden)
    assert ours.dtype == dtype
    assert torch.equal(ours, eager)
    assert_rounded_once(ours, exact, magnitude)


@pytest.mark.parametrize("hidden", [1, 3, 8, 255, 256, 257, 1025])
@pytest.mark.parametrize("batch_and_length", [(1, 1), (1, 7), (5, 1), (2, 65)])
def test_any_size(hidden, batch_and_length):
    weights = tables(hidden, **BOTH_TABLES)
    token_ids = ids(*batch_and_length)
    torch.testing.assert_close(
        call(token_ids, *weights, scale=2.0), call_reference(token_ids, *weights, scale=2.0), atol=0.0, rtol=0.0
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("hidden", "given"), [(2100, {}), (2101, BOTH_TABLES)])
def test_a_large_output_is_written_past_the_cache(dtype, hidden, given):
    weights = tables(hidden, dtype, **given)
    token_ids = ids(4, 1024)  # at least 16 MiB in two-byte elements
    assert torch.equal(call(token_ids, *weights), call_reference(token_ids, *weights))


def test_ids_at_both_ends_of_a_rank():
    weight = tables(rows=10)[0]
    out = call(torch.tensor([[0, 19, 20, 29, 30, VOCAB - 1]]), weight, start=20)[:, 0]
    assert torch.equal(out[2:4], weight[[0, 9]])
    assert not out[[0, 1, 4, 5]].any()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_batch_has_zero_gradient(shape):
    weight, type_weight, position_weight = (w.requires_grad_() for w in tables(**BOTH_TABLES))
    out = call(torch.zeros(shape, dtype=torch.long), weight, type_weight, position_weight)
    assert out.shape == (shape[1], shape[0], 12)
    out.sum().backward()
    assert weight.grad.shape == weight.shape
    assert not weight.grad.any()


def test_all_text_and_all_audio():
    weights = tables(**BOTH_TABLES)
    for low, high in ((0, LINGUISTIC), (LINGUISTIC, STOP), (STOP, VOCAB)):
        token_ids = torch.randint(low, high, (2, 13))
        exact = by_definition(token_ids, weights[0], 0, *weights[1:], 1.0)
        torch.testing.assert_close(call(token_ids, *weights), exact.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_table_that_begins_off_a_packet(device, which):
    weights = [w.to(device) for w in tables(16, torch.bfloat16, **BOTH_TABLES)]
    shifted = torch.empty(weights[which].numel() + 1, dtype=torch.bfloat16, device=device)[1:]
    weights[which] = shifted.view_as(weights[which]).copy_(weights[which])
    token_ids = ids(2, 9).to(device)
    assert torch.equal(call(token_ids, *weights), call_reference(token_ids, *weights))


def test_non_contiguous_inputs():
    weight, type_weight, position_weight = tables(24, **BOTH_TABLES)
    token_ids = ids(14, 6).t()[:, ::2]
    sliced = [w[:, ::2] for w in (weight, type_weight, position_weight)]
    ours = call(token_ids, *sliced)
    assert torch.equal(ours, call_reference(token_ids, *sliced))


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_sum_to_the_whole(num_ranks):
    weight, type_weight, position_weight = tables(dtype=torch.float64, **BOTH_TABLES)
    token_ids, rows = ids(2, 30), VOCAB // num_ranks
    parts = [
        call(token_ids, weight[r * rows : (r + 1) * rows], type_weight, position_weight, start=r * rows, scale=2.0)
        for r in range(num_ranks)
    ]
    assert torch.equal(sum(parts), call(token_ids, weight, type_weight, position_weight, scale=2.0))
    owners = sum((part.abs().sum(-1) > 0).long() for part in parts)
    assert owners.unique().tolist() == [1]


def gradients(function, weights, token_ids, grad_output, **more):
    leaves = [w.clone().requires_grad_() for w in weights]
    function(token_ids, *leaves, **more).backward(grad_output)
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("start", [0, 10])
@pytest.mark.parametrize("deterministic", [True, False])
def test_gradients_equal_autograd_of_the_reference(device, start, deterministic):
    weights = [w.to(device) for w in tables(dtype=torch.float64, rows=20 if start else VOCAB, **BOTH_TABLES)]
    token_ids = ids(3, 50).to(device)
    grad_output = torch.randn(50, 3, 12, dtype=torch.float64, device=device)
    ours = gradients(call, weights, token_ids, grad_output, start=start, scale=1.5, deterministic=deterministic)
    eager = gradients(call_reference, weights, token_ids, grad_output, start=start, scale=1.5)
    for one, other in zip(ours, eager, strict=True):
        torch.testing.assert_close(one, other, atol=1e-13, rtol=1e-13)


def test_gradcheck():
    weights = [w.requires_grad_() for w in tables(hidden=4, dtype=torch.float64, **BOTH_TABLES)]
    token_ids = ids(2, 9)
    assert torch.autograd.gradcheck(lambda *w: call(token_ids, *w, scale=0.7), weights)


def test_low_precision_gradient_is_rounded_once():
    weight = tables(dtype=torch.bfloat16)[0]
    token_ids = torch.full((1, 4000), 7)  # a plain bf16 sum would stick at 256 or 512
    (grad,) = gradients(call, [weight], token_ids, torch.ones(4000, 1, 12, dtype=torch.bfloat16))
    assert grad[7].unique().tolist() == [4000.0]
    assert grad.count_nonzero() == 12


def test_expanded_gradient():
    (grad,) = gradients(call, [tables()[0]], ids(2, 9), torch.ones(1, 1, 1).expand(9, 2, 12))
    counts = torch.bincount(ids(2, 9).flatten(), minlength=VOCAB)
    assert torch.equal(grad, counts[:, None].expand(-1, 12).float())


@pytest.mark.parametrize("threads", [2, 4])
def test_backward_does_not_depend_on_threads(threads):
    weights, token_ids = tables(hidden=300, **BOTH_TABLES), ids(4, 200)
    grad_output = torch.randn(200, 4, 300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = gradients(call, weights, token_ids, grad_output)
        torch.set_num_threads(threads)
        together = gradients(call, weights, token_ids, grad_output)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("bad", [-1, VOCAB, 10**12])
def test_an_id_outside_the_vocabulary_is_named(bad, monkeypatch):
    token_ids = ids(2, 9)
    token_ids[1, 4] = bad
    message = rf"token id {bad} at batch 1, position 4 is outside the vocabulary \[0, {VOCAB}\)"
    with pytest.raises(RuntimeError, match=message):
        call(token_ids, *tables())
    # What a GPU does when asked to check, then what it does otherwise.
    monkeypatch.setattr(library, "CHECK_IDS", True)
    monkeypatch.setattr(torch.ops.megatron_aqaa, "dual_codebook_embedding", None)  # not reached
    with pytest.raises(RuntimeError, match=message):
        call(token_ids, *tables())
    assert call_reference(token_ids, *tables())[4, 1].isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize("bad", [-1, VOCAB, 10**12])
def test_a_gpu_marks_an_id_outside_the_vocabulary(bad):
    token_ids = ids(2, 9)
    token_ids[1, 4] = bad
    weight = tables()[0].to("cuda").requires_grad_()
    out = call(token_ids.to("cuda"), weight)
    assert out[4, 1].isnan().all()
    assert out.isnan().sum() == 12
    out.nansum().backward()
    assert weight.grad.isfinite().all()


def bad_position(bad):
    """Weights, ids, and places in groups of which one lies outside [−1, 5)."""
    token_ids = ids(2, 9)
    positions = ops.positions_in_group(token_ids, LINGUISTIC, STOP)
    positions[1, 4] = bad
    return tables(16, position=True), token_ids, positions


@pytest.mark.parametrize("bad", [-2, 5, 10**12])
def test_a_group_position_that_no_table_holds_is_named(bad, monkeypatch):
    weights, token_ids, positions = bad_position(bad)
    message = rf"group position {bad} at batch 1, position 4 is outside \[-1, 5\)"
    with pytest.raises(RuntimeError, match=message):
        call(token_ids, *weights, group_positions=positions)
    # What a GPU does when asked to check, then what it does otherwise.
    monkeypatch.setattr(library, "CHECK_IDS", True)
    monkeypatch.setattr(torch.ops.megatron_aqaa, "dual_codebook_embedding", None)  # not reached
    with pytest.raises(RuntimeError, match=message):
        call(token_ids, *weights, group_positions=positions)
    out = call_reference(token_ids, *weights, group_positions=positions)
    assert out[4, 1].isnan().all()
    assert out.isnan().sum() == 16


@pytest.mark.gpu
@pytest.mark.parametrize("bad", [-2, 5, 10**12])
@pytest.mark.parametrize("start", [0, 30])  # a rank that does not hold the id says so as well
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_gpu_marks_a_group_position_that_no_table_holds(bad, start, deterministic):
    weights, token_ids, positions = bad_position(bad)
    weight, _, position_weight = (None if w is None else w.to("cuda").requires_grad_() for w in weights)
    out = call(
        token_ids.to("cuda"), weight[start:], None, position_weight,
        start=start, group_positions=positions.to("cuda"), deterministic=deterministic,
    )  # fmt: skip
    assert out[4, 1].isnan().all()
    assert out.isnan().sum() == 16
    out.nansum().backward()
    assert weight.grad.isfinite().all()
    counts = torch.bincount(positions[(positions >= 0) & (positions < 5) & (token_ids >= start)], minlength=5)
    assert position_weight.grad[:, 0].tolist() == counts.tolist()


def test_without_a_size_this_rank_holds_the_end_of_the_vocabulary():
    weight = tables(rows=10)[0]
    assert ops.dual_codebook_embedding(torch.tensor([[3, 14]]), weight, 5)[0].count_nonzero() == 0
    with pytest.raises(RuntimeError, match=r"token id 15 .* outside the vocabulary \[0, 15\)"):
        ops.dual_codebook_embedding(torch.tensor([[3, 15]]), weight, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": torch.zeros(3, dtype=torch.long)}, r"token_ids must be \[B, S\]"),
        ({"token_ids": torch.zeros(1, 3, dtype=torch.int32)}, "token_ids must be int64"),
        ({"weight": torch.zeros(3)}, r"weight must be \[rows, H\]"),
        ({"start": -1}, "vocab_start_index = -1 is negative"),
        ({"type_weight": torch.zeros(2, 12)}, r"type_weight must be \[3, 12\]"),
        ({"type_weight": torch.zeros(3, 12).bfloat16()}, "type_weight must have the dtype of weight"),
        ({"position_weight": torch.zeros(5, 11)}, r"group_position_weight must be \[5, 12\]"),
        (
            {"position_weight": torch.zeros(5, 12), "group_positions": torch.full((2, 9), 5)},
            r"group position 5 at batch 0, position 0 is outside \[-1, 5\)",
        ),
        (
            {"position_weight": torch.zeros(5, 12), "group_positions": torch.zeros(2, 8, dtype=torch.long)},
            "group_positions must have the shape of token_ids",
        ),
    ],
)
def test_wrong_shapes_and_types_are_named(change, message):
    arguments = {"token_ids": ids(2, 9), "weight": tables()[0]} | change
    with pytest.raises(RuntimeError, match=message):
        call(**arguments)


def test_tables_need_the_id_ranges():
    with pytest.raises(ValueError, match="0 <= linguistic_start < semantic_start < audio_stop, not 0, 0, 0"):
        ops.dual_codebook_embedding(ids(1, 3), tables()[0], type_weight=torch.zeros(3, 12))


def test_positions_in_group_by_hand():
    text, audio = 3, LINGUISTIC
    row = [audio, audio, text, audio, audio, audio, audio, audio, audio, text, text, audio]
    expected = [0, 1, -1, 0, 1, 2, 3, 4, 0, -1, -1, 0]
    assert ops.positions_in_group(torch.tensor([row, row]), LINGUISTIC, STOP).tolist() == [expected] * 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("given", [{}, BOTH_TABLES])
@pytest.mark.parametrize("out_dtype", [None, torch.bfloat16])
def test_opcheck(device, given, out_dtype):
    weights = [None if w is None else w.to(device).requires_grad_() for w in tables(**given)]
    token_ids = ids(2, 9).to(device)
    positions = ops.positions_in_group(token_ids, LINGUISTIC, STOP) if given else None
    operator = torch.ops.megatron_aqaa.dual_codebook_embedding.default
    layout = (0, VOCAB, *RANGES.values(), 1.5)
    results = torch.library.opcheck(operator, (token_ids, *weights, positions, *layout, out_dtype))
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_as_one_graph():
    weights = [w.requires_grad_() for w in tables(**BOTH_TABLES)]
    weights[0].main_grad = torch.zeros(VOCAB, 12)
    weights[0].grad_added_to_main_grad = False
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    token_ids = ids(2, 9)
    out = compiled(token_ids, *weights)
    assert torch.equal(out, call_reference(token_ids, *weights))
    out.sum().backward()
    # A traced backward cannot write to the buffer behind the compiler's back: it returns an ordinary gradient.
    assert not weights[0].grad_added_to_main_grad
    assert weights[0].grad.sum().item() == pytest.approx(token_ids.numel() * 12)
