"""Layers of the field's network against their definitions, and in bf16."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from megatron_aqaa.vocoder.cosyvoice.flow_loss import flow_losses
from megatron_aqaa.vocoder.cosyvoice.unet_layers import Attention, attend, time_features
from tests.vocoder.cosyvoice.tiny_flow import recordings, tiny_flow


def heads(dtype: torch.dtype) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 40, 16, generator=source, dtype=torch.float64).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_against_its_definition(masked: bool) -> None:
    query, key, value = heads(torch.float64)
    seen = (torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(1)) < 0.5) | torch.eye(40).bool()
    scores = query @ key.transpose(-1, -2) / 4
    if masked:
        scores = scores.masked_fill(~seen, -math.inf)
    torch.testing.assert_close(attend(query, key, value, seen if masked else None), scores.softmax(-1) @ value)


@pytest.mark.parametrize("masked", [False, True])
def test_bf16_attention_on_a_cpu_errs_at_most_twice_as_much_as_torchs(masked: bool) -> None:
    seen = torch.ones(40, 40).tril().bool() if masked else None
    exact = functional.scaled_dot_product_attention(*(x.double() for x in heads(torch.bfloat16)), seen)
    errors = [
        float((form(*heads(torch.bfloat16), seen).double() - exact).abs().mean())
        for form in (attend, functional.scaled_dot_product_attention)
    ]
    assert errors[0] <= 2 * errors[1]


def test_attention_in_bf16_has_a_gradient() -> None:
    layer, x = Attention(16, 2, 8, 0.0), torch.randn(1, 12, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x, None).sum().backward()
    assert x.grad.abs().sum() > 0


def test_time_features_by_hand() -> None:
    """Four features of t = .002: sine and cosine of 2 at the rates 1 and 10⁻⁴."""
    expected = torch.tensor([[math.sin(2), math.sin(2e-4), math.cos(2), math.cos(2e-4)]])
    torch.testing.assert_close(time_features(torch.tensor([0.002]), 4), expected)


def test_loss_in_bf16_is_near_the_exact_one() -> None:
    model, batch = tiny_flow(), recordings(4, 20)
    losses = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(flow_losses(model, batch)["loss"])
    assert losses[1].dtype == torch.float32
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=0.01)
