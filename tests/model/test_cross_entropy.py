"""Vocabulary-parallel cross entropy against PyTorch's; the split over real ranks is in `tests/distributed`."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_aqaa.model import cross_entropy
from megatron_aqaa.model.cross_entropy import vocab_parallel_cross_entropy


@pytest.fixture(scope="module")
def group(one_process: None) -> dist.ProcessGroup:
    return dist.group.WORLD


@pytest.mark.parametrize("num_tokens", [0, 1, 37])
@pytest.mark.parametrize("block_elements", [1, 100, 1 << 17])
def test_losses_and_gradients_are_those_of_the_real_rows(
    group: dist.ProcessGroup, num_tokens: int, block_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cross_entropy._BLOCK_ELEMENTS, "cpu", block_elements)
    padded, vocab_size = 48, 41
    logits = torch.randn(num_tokens, padded, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, vocab_size, (num_tokens,))
    weights = torch.randn(num_tokens, dtype=torch.float64)
    before = logits.detach().clone()

    losses = vocab_parallel_cross_entropy(logits, labels, vocab_size, group)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), logits)
    expected = F.cross_entropy(logits[:, :vocab_size], labels, reduction="none")
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), logits)

    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert torch.equal(logits, before)


def test_padded_rows_cannot_be_reached_however_large_their_logits(group: dist.ProcessGroup) -> None:
    logits = torch.zeros(3, 10, requires_grad=True)
    with torch.no_grad():
        logits[:, 7:] = 1e4
    losses = vocab_parallel_cross_entropy(logits, torch.tensor([0, 3, 6]), 7, group)
    losses.sum().backward()
    torch.testing.assert_close(losses, torch.full((3,), 7.0).log())
    assert torch.equal(logits.grad[:, 7:], torch.zeros(3, 3))


def test_large_logits_do_not_overflow(group: dist.ProcessGroup) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-3e38, 3e38, 0.0]])
    losses = vocab_parallel_cross_entropy(logits, torch.tensor([0, 1]), 3, group)
    assert torch.equal(losses, torch.zeros(2))


def test_bf16_is_no_worse_than_twice_the_plain_form(group: dist.ProcessGroup) -> None:
    torch.manual_seed(0)
    exact = torch.randn(64, 300, dtype=torch.float64) * 3
    labels = torch.randint(0, 300, (64,))
    rounded = exact.bfloat16().requires_grad_()
    truth = exact.bfloat16().double().requires_grad_()

    losses = vocab_parallel_cross_entropy(rounded, labels, 300, group)
    (ours,) = torch.autograd.grad(losses.sum(), rounded)
    plain_losses = F.cross_entropy(rounded.float(), labels, reduction="none")
    (plain,) = torch.autograd.grad(plain_losses.sum(), rounded)
    (true,) = torch.autograd.grad(F.cross_entropy(truth, labels, reduction="sum"), truth)

    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, plain_losses)
    assert (ours - true).abs().max() <= 2 * (plain - true).abs().max()
