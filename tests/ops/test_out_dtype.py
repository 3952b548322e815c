"""The output in the activations' dtype, for both forms: fp32 tables beside bf16 activations, and the reverse."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa import ops

PAIRS = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
RANGES = {"linguistic_start": 10, "semantic_start": 14, "audio_stop": 20}


def flat(weight, **more):
    token_ids = torch.arange(26, device=weight.device).remainder(20).reshape(2, 13)
    small = {"type_weight": weight[:3].detach().clone(), "group_position_weight": weight[3:8].detach().clone()}
    return ops.dual_codebook_embedding(token_ids, weight, **small, **RANGES, **more).transpose(0, 1)


def pair(weight, **more):
    codes = torch.arange(52, device=weight.device).remainder(21).reshape(2, 13, 2) - 1
    return ops.code_pair_embedding(codes, weight, weight.detach().flip(0), **more)


FORMS = {"flat": flat, "pair": pair, "pair side by side": lambda weight, **more: pair(weight, concatenate=True, **more)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "out_dtype"), PAIRS)
@pytest.mark.parametrize("hidden", [16, 7, 300, 1032])
def test_one_rounding_and_a_gradient_in_both_dtypes(device, form, dtype, out_dtype, hidden):
    torch.manual_seed(0)
    weight = torch.randn(20, hidden, dtype=torch.float64).to(dtype).to(device).requires_grad_()
    exact = FORMS[form](weight.detach().double().requires_grad_(), scale=0.75)
    out = FORMS[form](weight, scale=0.75, out_dtype=out_dtype)
    assert out.dtype == out_dtype
    eps = max(
        torch.finfo(out_dtype).eps / 2, torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    )
    torch.testing.assert_close(out.double(), exact, atol=4 * eps, rtol=eps)
    grad_output = torch.randn(out.shape, device=device).to(out_dtype)
    leaf = weight.detach().double().requires_grad_()
    FORMS[form](leaf, scale=0.75).backward(grad_output.double())
    out.backward(grad_output)
    assert weight.grad.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(weight.grad.double(), leaf.grad, atol=8 * eps, rtol=eps)


@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [(torch.bfloat16, torch.float16), (torch.float64, torch.float32), (torch.float32, torch.float64)],
)
@pytest.mark.parametrize("form", FORMS)
def test_other_pairs_are_refused(form, dtype, out_dtype):
    with pytest.raises(RuntimeError, match="out_dtype must be the dtype of the tables; float32 tables also give"):
        FORMS[form](torch.zeros(20, 4, dtype=dtype), out_dtype=out_dtype)


def test_bf16_activations_of_an_fp32_table_add_up_in_main_grad():
    weight = torch.nn.Parameter(torch.randn(20, 6))
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros(20, 6), False
    grad_output = torch.randn(2, 13, 6).bfloat16()
    flat(weight, out_dtype=torch.bfloat16).backward(grad_output)
    rows = torch.arange(26).remainder(20)
    exact = torch.zeros(20, 6).index_add_(0, rows, grad_output.reshape(-1, 6).float())
    assert weight.grad_added_to_main_grad
    torch.testing.assert_close(weight.main_grad, exact)
