"""RMSNorm against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_aqaa.model.config import to_transformer_config
from megatron_aqaa.model.norm import RMSNorm
from megatron_aqaa.platform import ParallelConfig
from tests.model.sizes import TINY, variant


def norm(dtype: str, width: int) -> RMSNorm:
    layer = RMSNorm(to_transformer_config(variant(params_dtype=dtype), ParallelConfig()), width, eps=1e-3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(width))
    return layer


@pytest.mark.parametrize("shape", [(5, 3, 16), (0, 2, 16), (1, 16)])
def test_values_and_gradients_by_the_formula(shape: tuple[int, ...]) -> None:
    layer = norm("fp64", 16)
    hidden = torch.randn(shape, dtype=torch.float64).transpose(0, -2).requires_grad_()  # not contiguous
    weights = torch.randn(hidden.shape, dtype=torch.float64)
    out = layer(hidden)
    expected = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-3).sqrt() * layer.weight
    torch.testing.assert_close(out, expected)
    parameters = [hidden, layer.weight]
    gradients = torch.autograd.grad((out * weights).sum(), parameters)
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * weights).sum(), parameters))


def test_bf16_is_computed_in_fp32() -> None:
    layer = norm("bf16", 64)
    hidden = torch.randn(7, 2, 64, dtype=torch.bfloat16, requires_grad=True)
    out = layer(hidden)
    expected = F.rms_norm(hidden.float(), (64,), layer.weight.float(), 1e-3)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected.bfloat16(), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(out.float().sum(), hidden)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), hidden)
    torch.testing.assert_close(gradient, expected_gradient)


def test_sequence_parallelism_is_marked_for_megatron() -> None:
    split = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
    assert RMSNorm(to_transformer_config(TINY, split), 8).weight.sequence_parallel is True
    assert RMSNorm(to_transformer_config(TINY, ParallelConfig()), 8).weight.sequence_parallel is False
