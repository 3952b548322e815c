"""Two-column dual-codebook embedding: definition as a loop, eager reference, C++ on the CPU, CUDA if there is one."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa import ops
from megatron_aqaa.ops import library
from megatron_aqaa.ops.code_pair_embedding import code_pair_embedding_reference
from tests.ops.rounding import assert_rounded_once

LINGUISTIC, SEMANTIC = 7, 11
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Of both tables where terms stand side by side, else of the first. A GPU moves 16 bytes at a time: 12 and 20 columns
# are whole packets in fp32 and fp64 alone, the others in every dtype; 1032 in bf16 are more than a block has threads.
WIDTHS = [(12, 20), (16, 24), (1032, 40), (16, 20)]


def tables(hidden=12, semantic_hidden=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((LINGUISTIC, hidden), (SEMANTIC, semantic_hidden or hidden))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def pairs(*shape, low=-1):
    generator = torch.Generator().manual_seed(1)
    columns = [torch.randint(low, rows, shape, generator=generator) for rows in (LINGUISTIC, SEMANTIC)]
    return torch.stack(columns, dim=-1)


def by_definition(codes, linguistic, semantic, concatenate, scale):
    rows = []
    for first, second in codes.reshape(-1, 2).tolist():
        one = linguistic[first].double() if first >= 0 else torch.zeros(linguistic.shape[1], dtype=torch.float64)
        other = semantic[second].double() if second >= 0 else torch.zeros(semantic.shape[1], dtype=torch.float64)
        rows.append(scale * (torch.cat((one, other)) if concatenate else one + other))
    return torch.stack(rows).reshape(*codes.shape[:-1], -1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("concatenate", [False, True])
@pytest.mark.parametrize("scale", [1.0, 3.7])
@pytest.mark.parametrize("widths", WIDTHS)
def test_forward_is_the_rounded_definition(device, dtype, concatenate, scale, widths):
    hidden, semantic_hidden = widths if concatenate else widths[:1] * 2
    weights = tables(hidden, semantic_hidden, dtype)
    codes = pairs(3, 17)
    exact = by_definition(codes, *weights, concatenate, scale)
    magnitude = by_definition(codes, *(w.abs() for w in weights), concatenate, scale)
    ours = ops.code_pair_embedding(
        codes.to(device), *(w.to(device) for w in weights), concatenate=concatenate, scale=scale
    ).cpu()
    assert ours.shape == (3, 17, hidden + semantic_hidden * concatenate)
    assert ours.dtype == dtype
    assert torch.equal(ours, code_pair_embedding_reference(codes, *weights, concatenate, scale))
    assert_rounded_once(ours, exact, magnitude)


@pytest.mark.parametrize("hidden", [1, 3, 8, 255, 256, 257, 600])
@pytest.mark.parametrize("concatenate", [False, True])
def test_any_width(hidden, concatenate):
    weights, codes = tables(hidden, 5 if concatenate else None), pairs(2, 13)
    ours = ops.code_pair_embedding(codes, *weights, concatenate=concatenate, scale=2.0)
    assert torch.equal(ours, code_pair_embedding_reference(codes, *weights, concatenate, 2.0))


def test_the_layout_is_that_of_the_codes():
    weights, codes = tables(), pairs(3, 9)
    frames_first = ops.code_pair_embedding(codes.transpose(0, 1), *weights)
    assert torch.equal(frames_first, ops.code_pair_embedding(codes, *weights).transpose(0, 1))
    assert frames_first.is_contiguous()
    assert torch.equal(ops.code_pair_embedding(codes[1, 4], *weights), frames_first[4, 1])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0,)])
def test_empty_input_has_zero_gradient(shape):
    weights = [w.requires_grad_() for w in tables()]
    out = ops.code_pair_embedding(torch.zeros(*shape, 2, dtype=torch.long), *weights)
    assert out.shape == (*shape, 12)
    out.sum().backward()
    assert not any(w.grad.any() for w in weights)


def test_both_absent_gives_zeros_and_no_gradient():
    weights = [w.requires_grad_() for w in tables()]
    out = ops.code_pair_embedding(torch.full((2, 4, 2), -1), *weights)
    assert not out.any()
    out.sum().backward()
    assert not any(w.grad.any() for w in weights)


def test_a_group_in_time():
    linguistic, semantic = tables()
    codes = torch.tensor([[[2, 4], [3, 5], [-1, 6]]])  # [a, b, absent] beside [c, d, e]
    out = ops.code_pair_embedding(codes, linguistic, semantic)[0]
    assert torch.equal(out, torch.stack((linguistic[2] + semantic[4], linguistic[3] + semantic[5], semantic[6])))


def gradients(function, weights, codes, grad_output, **more):
    leaves = [w.clone().requires_grad_() for w in weights]
    function(codes, *leaves, **more).backward(grad_output)
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("concatenate", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradients_equal_autograd_of_the_reference(device, concatenate, deterministic):
    weights = [w.to(device) for w in tables(12, 20 if concatenate else 12, torch.float64)]
    codes = pairs(3, 80).to(device)  # more than one chunk of sorted places
    grad_output = torch.randn(3, 80, 32 if concatenate else 12, dtype=torch.float64, device=device)
    more = {"concatenate": concatenate, "scale": 1.5, "deterministic": deterministic}
    ours = gradients(ops.code_pair_embedding, weights, codes, grad_output, **more)
    eager = gradients(code_pair_embedding_reference, weights, codes, grad_output, **more)
    for one, other in zip(ours, eager, strict=True):
        torch.testing.assert_close(one, other, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("concatenate", [False, True])
def test_gradcheck(concatenate):
    weights = [w.requires_grad_() for w in tables(3, dtype=torch.float64)]
    codes = pairs(2, 6)
    assert torch.autograd.gradcheck(
        lambda *w: ops.code_pair_embedding(codes, *w, concatenate=concatenate, scale=0.7), weights
    )


@pytest.mark.parametrize("which", [0, 1])
def test_one_frozen_table(which):
    weights = tables()
    weights[which].requires_grad_()
    ops.code_pair_embedding(pairs(2, 9, low=0), *weights).sum().backward()
    assert weights[which].grad.sum().item() == 2 * 9 * 12
    assert weights[1 - which].grad is None


@pytest.mark.parametrize("concatenate", [False, True])
def test_rows_go_straight_into_main_grad(concatenate):
    codes, weights = pairs(3, 40), [w.bfloat16().requires_grad_() for w in tables()]
    for weight in weights:  # as Megatron's DDP leaves a parameter
        weight.main_grad = torch.zeros(weight.shape)
        weight.grad_added_to_main_grad = False
    grad_output = torch.randn(3, 40, 24 if concatenate else 12).bfloat16()
    for _ in range(2):
        ops.code_pair_embedding(codes, *weights, concatenate=concatenate, scale=0.5).backward(grad_output)
    exact = gradients(
        code_pair_embedding_reference,
        [w.detach().double() for w in weights],
        codes,
        2 * grad_output.double(),
        concatenate=concatenate,
        scale=0.5,
    )
    for weight, gradient in zip(weights, exact, strict=True):
        assert weight.grad_added_to_main_grad
        torch.testing.assert_close(weight.main_grad.double(), gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("column", "rows", "name"), [(0, LINGUISTIC, "linguistic"), (1, SEMANTIC, "semantic")])
@pytest.mark.parametrize("bad", [-2, None, 10**12])
def test_a_code_outside_its_table_is_named(column, rows, name, bad, monkeypatch):
    codes, bad = pairs(2, 9), rows if bad is None else bad
    codes[1, 4, column] = bad
    with pytest.raises(RuntimeError, match=rf"{name} code {bad} at batch 1, position 4 is outside \[-1, {rows}\)"):
        ops.code_pair_embedding(codes, *tables())
    # What a GPU does when asked to check, then what it does otherwise.
    monkeypatch.setattr(library, "CHECK_IDS", True)
    monkeypatch.setattr(torch.ops.megatron_aqaa, "code_pair_embedding", None)  # not reached
    with pytest.raises(RuntimeError, match=rf"{name} code {bad} at \[1, 4\] is outside \[-1, {rows}\)"):
        ops.code_pair_embedding(codes, *tables())
    out = code_pair_embedding_reference(codes, *tables(), False, 1.0)
    assert out[1, 4].isnan().all()
    assert out.isnan().sum() == 12


@pytest.mark.gpu
def test_a_gpu_marks_a_code_outside_its_table():
    codes = pairs(2, 9)
    codes[1, 4, 0] = LINGUISTIC
    weights = [w.to("cuda").requires_grad_() for w in tables()]
    out = ops.code_pair_embedding(codes.to("cuda"), *weights)
    assert out[1, 4].isnan().all()
    assert out.isnan().sum() == 12
    out.nansum().backward()
    assert all(w.grad.isfinite().all() for w in weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(2, 3, dtype=torch.long)}, r"codes must be \[..., 2\]"),
        ({"codes": torch.zeros(2, dtype=torch.int32)}, "codes must be int64"),
        ({"semantic_weight": torch.zeros(SEMANTIC, 13)}, "tables of width 12 and 13 cannot be summed"),
        ({"semantic_weight": torch.zeros(SEMANTIC, 12).half()}, "both tables must have one dtype"),
        ({"linguistic_weight": torch.zeros(12)}, r"each table must be \[rows, H\]"),
        ({"out_dtype": torch.float64}, "out_dtype must be the dtype of the tables"),
    ],
)
def test_wrong_shapes_and_types_are_named(change, message):
    linguistic, semantic = tables()
    arguments = {"codes": pairs(2, 9), "linguistic_weight": linguistic, "semantic_weight": semantic} | change
    with pytest.raises(RuntimeError, match=message):
        ops.code_pair_embedding(**arguments)


def test_non_contiguous_inputs():
    codes = pairs(14, 6).transpose(0, 1)[:, ::2]
    weights = [w[:, ::2] for w in tables(24)]
    assert torch.equal(
        ops.code_pair_embedding(codes, *weights), code_pair_embedding_reference(codes, *weights, False, 1.0)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("concatenate", [False, True])
@pytest.mark.parametrize("out_dtype", [None, torch.bfloat16])
def test_opcheck(device, concatenate, out_dtype):
    weights = [w.to(device).requires_grad_() for w in tables()]
    operator = torch.ops.megatron_aqaa.code_pair_embedding.default
    results = torch.library.opcheck(operator, (pairs(2, 9).to(device), *weights, concatenate, 1.5, out_dtype))
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_as_one_graph():
    weights = [w.requires_grad_() for w in tables()]
    compiled = torch.compile(ops.code_pair_embedding, fullgraph=True, backend="aot_eager")
    codes = pairs(2, 9, low=0)
    out = compiled(codes, *weights, concatenate=True, out_dtype=torch.bfloat16)
    assert torch.equal(out, code_pair_embedding_reference(codes, *weights, True, 1.0, torch.bfloat16))
    out.sum().backward()
    assert [w.grad.sum().item() for w in weights] == [2 * 9 * 12] * 2
