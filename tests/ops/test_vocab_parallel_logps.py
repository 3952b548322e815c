"""Log-probabilities from logits against PyTorch's log-softmax; the split over real ranks is in `tests/distributed`."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_aqaa.ops import vocab_parallel_cross_entropy, vocab_parallel_logps
from megatron_aqaa.ops.vocab_parallel_logps import BLOCK_ELEMENTS
from tests.ops.made_tensors import MadeTensors

PADDED, VOCAB_SIZE = 48, 41
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ALLOWED = {
    "all": None,
    "text": range(20),
    "audio": range(20, 38),
    "text and markers": [range(20), range(38, VOCAB_SIZE)],
    "one id": range(7, 8),
}


def allowed_ids(name: str, vocab_size: int = VOCAB_SIZE) -> Tensor:
    allowed = ALLOWED[name]
    parts = [range(vocab_size)] if allowed is None else [allowed] if isinstance(allowed, range) else allowed
    return torch.cat([torch.arange(part.start, part.stop) for part in parts])


def reference(logits: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
    """[n] by the definition: log-softmax over a copy of the logits in which all but `ids` are −inf."""
    masked = torch.full_like(logits, -torch.inf).index_copy(1, ids, logits.index_select(1, ids))
    return masked.log_softmax(-1).gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("num_tokens", [0, 1, 37])
@pytest.mark.parametrize("block_elements", [1, 100, 1 << 17])
@pytest.mark.parametrize("device", DEVICES)
def test_values_and_gradients_are_those_of_the_definition(
    group: dist.ProcessGroup,
    name: str,
    num_tokens: int,
    block_elements: int,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BLOCK_ELEMENTS, device, block_elements)
    ids = allowed_ids(name).to(device)
    logits = torch.randn(num_tokens, PADDED, dtype=torch.float64, device=device, requires_grad=True)
    labels = ids[torch.randint(0, len(ids), (num_tokens,), device=device)]
    weights = torch.randn(num_tokens, dtype=torch.float64, device=device)
    before = logits.detach().clone()

    logps = vocab_parallel_logps(logits, labels, vocab_size=VOCAB_SIZE, group=group, allowed=ALLOWED[name])
    (gradient,) = torch.autograd.grad((logps * weights).sum(), logits)
    expected = reference(logits, labels, ids)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), logits)

    assert logps.dtype == torch.float64
    torch.testing.assert_close(logps, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(group: dist.ProcessGroup, device: str) -> None:
    logits = torch.randn(5, 12, dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.tensor([0, 3, 8, 9, 2], device=device)
    for allowed in (None, [range(4), range(8, 10)]):
        assert torch.autograd.gradcheck(
            lambda x, a=allowed: vocab_parallel_logps(x, labels, vocab_size=10, group=group, allowed=a), logits
        )


@pytest.mark.parametrize("without", ["grad mode", "requires_grad"])
def test_probabilities_are_not_held_without_gradients(
    group: dist.ProcessGroup, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", 4 * PADDED)
    logits = torch.randn(37, PADDED, requires_grad=without != "requires_grad")
    labels = torch.randint(0, VOCAB_SIZE, (37,))
    with torch.set_grad_enabled(without != "grad mode"), MadeTensors() as made:
        logps = vocab_parallel_logps(logits, labels, vocab_size=VOCAB_SIZE, group=group)
    assert 0 < made.largest <= 4 * PADDED
    kept = vocab_parallel_logps(logits.detach().requires_grad_(), labels, vocab_size=VOCAB_SIZE, group=group)
    assert torch.equal(logps, kept)


def test_cross_entropy_is_minus_the_log_probability(group: dist.ProcessGroup) -> None:
    logits, labels = torch.randn(9, PADDED), torch.randint(0, VOCAB_SIZE, (9,))
    losses = vocab_parallel_cross_entropy(logits, labels, vocab_size=VOCAB_SIZE, group=group)
    assert torch.equal(losses, -vocab_parallel_logps(logits, labels, vocab_size=VOCAB_SIZE, group=group))


@pytest.mark.parametrize("poison", [1e4, torch.inf, torch.nan])
@pytest.mark.parametrize("allowed", [None, range(3, 7)])
def test_rows_outside_the_softmax_may_hold_anything(
    group: dist.ProcessGroup, poison: float, allowed: range | None
) -> None:
    inside = allowed or range(7)
    logits = torch.full((3, 10), poison)
    logits[:, inside.start : inside.stop] = 0
    logits.requires_grad_()
    logps = vocab_parallel_logps(logits, torch.tensor([3, 4, 6]), vocab_size=7, group=group, allowed=allowed)
    logps.sum().backward()
    torch.testing.assert_close(logps, -torch.full((3,), float(len(inside))).log())
    outside = [column for column in range(10) if column not in inside]
    assert torch.equal(logits.grad[:, outside], torch.zeros(3, len(outside)))
    assert logits.grad.isfinite().all()


def test_large_logits_do_not_overflow(group: dist.ProcessGroup) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-3e38, 3e38, 0.0]])
    assert torch.equal(vocab_parallel_logps(logits, torch.tensor([0, 1]), vocab_size=3, group=group), torch.zeros(2))


def test_layout_of_the_logits_does_not_matter(group: dist.ProcessGroup) -> None:
    logits, labels = torch.randn(PADDED, 9), torch.randint(0, VOCAB_SIZE, (9,))
    turned = vocab_parallel_logps(logits.t(), labels, vocab_size=VOCAB_SIZE, group=group)
    straight = vocab_parallel_logps(logits.t().contiguous(), labels, vocab_size=VOCAB_SIZE, group=group)
    torch.testing.assert_close(turned, straight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_is_no_worse_than_twice_the_plain_form(group: dist.ProcessGroup, device: str) -> None:
    torch.manual_seed(0)
    exact = torch.randn(64, 300, dtype=torch.float64).to(device) * 3
    labels = torch.randint(0, 300, (64,)).to(device)
    rounded = exact.bfloat16().requires_grad_()
    truth = exact.bfloat16().double().requires_grad_()

    logps = vocab_parallel_logps(rounded, labels, vocab_size=300, group=group)
    (ours,) = torch.autograd.grad(logps.sum(), rounded)
    plain_logps = rounded.float().log_softmax(-1).gather(1, labels[:, None])[:, 0]
    (plain,) = torch.autograd.grad(plain_logps.sum(), rounded)
    (true,) = torch.autograd.grad(reference(truth, labels, torch.arange(300, device=device)).sum(), truth)

    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, plain_logps)
    assert (ours - true).abs().max() <= 2 * (plain - true).abs().max()


@pytest.mark.parametrize(
    ("label", "allowed", "message"),
    [
        (41, None, r"label 41 at index 2 is not among the ids of the softmax \(0 … 40\)"),
        (-100, None, "label -100 at index 2"),
        (20, range(20), r"label 20 at index 2 is not among the ids of the softmax \(0 … 19\)"),
        (25, [range(20), range(38, 41)], r"label 25 .* \(0 … 19, 38 … 40\)"),
    ],
)
def test_a_label_outside_the_softmax_is_named(
    group: dist.ProcessGroup, label: int, allowed: range | list[range] | None, message: str
) -> None:
    labels = torch.tensor([1, 2, label])
    with pytest.raises(ValueError, match=message):
        vocab_parallel_logps(torch.zeros(3, PADDED), labels, vocab_size=VOCAB_SIZE, group=group, allowed=allowed)


@pytest.mark.gpu
def test_a_label_outside_the_softmax_gets_minus_infinity_on_a_gpu(group: dist.ProcessGroup) -> None:
    labels = torch.tensor([1, 41, -100], device="cuda")
    logps = vocab_parallel_logps(torch.zeros(3, PADDED, device="cuda"), labels, vocab_size=VOCAB_SIZE, group=group)
    assert logps[0].isfinite() and (logps[1:] == -torch.inf).all()


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ([], "allowed holds no range"),
        (range(5, 5), r"range\(5, 5\) must be a non-empty range"),
        (range(0, 10, 2), "step 1"),
        (range(30, 42), "ends at 41 or below"),
        (range(-1, 4), "starts at 0 or above"),
        ([range(10), range(9, 12)], "starts at 10 or above"),
    ],
)
def test_a_wrong_restriction_is_named(group: dist.ProcessGroup, allowed: range | list[range], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vocab_parallel_logps(torch.zeros(1, PADDED), torch.tensor([6]), vocab_size=41, group=group, allowed=allowed)


def test_wrong_sizes_are_named(group: dist.ProcessGroup) -> None:
    with pytest.raises(ValueError, match=r"labels \[2\] must be \[3\]"):
        vocab_parallel_logps(torch.zeros(3, PADDED), torch.tensor([0, 1]), vocab_size=VOCAB_SIZE, group=group)
    with pytest.raises(ValueError, match="vocab_size = 49 must lie in 1 … 48"):
        vocab_parallel_logps(torch.zeros(1, PADDED), torch.tensor([0]), vocab_size=49, group=group)
