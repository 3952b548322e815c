"""SwiGLU against PyTorch's functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_aqaa.model.swiglu import swiglu


@pytest.mark.parametrize("shape", [(3, 2, 10), (0, 2, 10), (1, 2)])
def test_values_and_gradients(shape: tuple[int, ...]) -> None:
    hidden = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu, hidden)
    gate, up = hidden.chunk(2, -1)
    torch.testing.assert_close(swiglu(hidden), F.silu(gate) * up)


def test_bf16_equals_the_plain_form_bit_by_bit() -> None:
    hidden = torch.randn(5, 3, 32, dtype=torch.bfloat16, requires_grad=True)
    grad_out = torch.randn(5, 3, 16, dtype=torch.bfloat16)
    gate, up = hidden.chunk(2, -1)
    plain = F.silu(gate) * up
    assert torch.equal(swiglu(hidden), plain)
    (ours,) = torch.autograd.grad(swiglu(hidden), hidden, grad_out)
    (theirs,) = torch.autograd.grad(plain, hidden, grad_out)
    assert torch.equal(ours, theirs)
