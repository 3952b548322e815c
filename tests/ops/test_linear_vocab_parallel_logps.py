"""Log-probabilities from hidden states against the plain product and log-softmax, and what backward leaves where."""

from __future__ import annotations

import sys
import weakref
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from megatron_aqaa import ops
from megatron_aqaa.ops import linear_vocab_parallel_logps
from tests.ops.made_tensors import MadeTensors
from tests.ops.test_vocab_parallel_logps import ALLOWED, DEVICES, PADDED, VOCAB_SIZE, allowed_ids, reference

HIDDEN = 6
both_forms = pytest.mark.parametrize("recompute", [True, False])
both_devices = pytest.mark.parametrize("device", DEVICES)


class Case(NamedTuple):
    hidden: Tensor
    weight: Tensor
    labels: Tensor
    weights: Tensor


def case(
    num_tokens: int,
    name: str = "all",
    dtype: torch.dtype = torch.float64,
    hidden_size: int = HIDDEN,
    device: str = "cpu",
) -> Case:
    random = torch.Generator().manual_seed(num_tokens)
    ids = allowed_ids(name)
    hidden = torch.randn(num_tokens, hidden_size, generator=random, dtype=torch.float64)
    weight = torch.randn(PADDED, hidden_size, generator=random, dtype=torch.float64)
    labels = ids[torch.randint(0, len(ids), (num_tokens,), generator=random)]
    weights = torch.randn(num_tokens, generator=random, dtype=torch.float64)
    hidden, weight = (x.to(device, dtype).requires_grad_() for x in (hidden, weight))
    return Case(hidden, weight, labels.to(device), weights.to(device))


def plain(data: Case, ids: Tensor) -> Tensor:
    return reference(data.hidden @ data.weight.t(), data.labels, ids.to(data.hidden.device))


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("num_tokens", [0, 1, 37])
@pytest.mark.parametrize("block_rows", [1, 7, 41, None])
@both_forms
@both_devices
def test_values_and_gradients_are_those_of_the_plain_form(
    group: dist.ProcessGroup, name: str, num_tokens: int, block_rows: int | None, recompute: bool, device: str
) -> None:
    data = case(num_tokens, name, device=device)
    logps = linear_vocab_parallel_logps(
        data.hidden, data.weight, data.labels,
        vocab_size=VOCAB_SIZE, group=group, allowed=ALLOWED[name], block_rows=block_rows, recompute=recompute,
    )  # fmt: skip
    expected = plain(data, allowed_ids(name))
    assert logps.dtype == torch.float64
    torch.testing.assert_close(logps, expected)
    inputs = (data.hidden, data.weight)
    torch.testing.assert_close(
        torch.autograd.grad((logps * data.weights).sum(), inputs),
        torch.autograd.grad((expected * data.weights).sum(), inputs),
    )


@both_forms
@both_devices
def test_gradcheck(group: dist.ProcessGroup, recompute: bool, device: str) -> None:
    hidden, weight = (torch.randn(n, 3, dtype=torch.float64, device=device, requires_grad=True) for n in (4, 12))
    labels, loss_mask = (torch.tensor(x, device=device) for x in ([0, 3, 8, 9], [1.0, 0.0, 2.0, 1.0]))

    def logps(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_vocab_parallel_logps(
            hidden, weight, labels, vocab_size=10, group=group, loss_mask=loss_mask, block_rows=4, recompute=recompute
        )

    assert torch.autograd.gradcheck(logps, (hidden, weight))


@both_forms
@both_devices
def test_masked_tokens_are_not_read(group: dist.ProcessGroup, recompute: bool, device: str) -> None:
    data = case(12, device=device)
    loss_mask = torch.tensor([1, 0, 2, 0, 0, 3, 1, 1, 0, 0, 0, 1], device=device).double()
    hidden, labels = data.hidden.detach().clone(), data.labels.clone()
    hidden[loss_mask == 0] = torch.nan
    labels[loss_mask == 0] = -100
    hidden.requires_grad_()
    logps = linear_vocab_parallel_logps(
        hidden, data.weight, labels, vocab_size=VOCAB_SIZE, group=group, loss_mask=loss_mask, recompute=recompute
    )
    expected = plain(data, torch.arange(VOCAB_SIZE)) * (loss_mask > 0)
    torch.testing.assert_close(logps, expected)
    torch.testing.assert_close(
        torch.autograd.grad((logps * data.weights).sum(), (hidden, data.weight)),
        torch.autograd.grad((expected * data.weights).sum(), (data.hidden, data.weight)),
    )


@both_forms
def test_all_tokens_masked(group: dist.ProcessGroup, recompute: bool) -> None:
    data = case(5)
    logps = linear_vocab_parallel_logps(
        data.hidden, data.weight, torch.full((5,), -100),
        vocab_size=VOCAB_SIZE, group=group, loss_mask=torch.zeros(5), recompute=recompute,
    )  # fmt: skip
    assert torch.equal(logps, torch.zeros(5, dtype=torch.float64))
    logps.sum().backward()
    assert not data.hidden.grad.any()
    assert not data.weight.grad.any()


@pytest.mark.parametrize("poison", [1e4, torch.inf, torch.nan])
@pytest.mark.parametrize("name", ["all", "audio"])
def test_rows_outside_the_softmax_may_hold_anything(group: dist.ProcessGroup, poison: float, name: str) -> None:
    data = case(9, name)
    ids = allowed_ids(name)
    expected = plain(data, ids)
    expected_gradients = torch.autograd.grad(expected.sum(), (data.hidden, data.weight))
    poisoned = torch.full_like(data.weight, poison)
    poisoned[ids] = data.weight.detach()[ids]
    poisoned.requires_grad_()
    logps = linear_vocab_parallel_logps(
        data.hidden, poisoned, data.labels, vocab_size=VOCAB_SIZE, group=group, allowed=ALLOWED[name], block_rows=5
    )
    torch.testing.assert_close(logps, expected)
    torch.testing.assert_close(torch.autograd.grad(logps.sum(), (data.hidden, poisoned)), expected_gradients)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_needs_no_gradient_gets_none(group: dist.ProcessGroup, frozen: str) -> None:
    data = case(9)
    getattr(data, frozen).requires_grad_(False)
    logps = linear_vocab_parallel_logps(data.hidden, data.weight, data.labels, vocab_size=VOCAB_SIZE, group=group)
    other = data.weight if frozen == "hidden" else data.hidden
    (gradient,) = torch.autograd.grad(logps.sum(), other)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain(data, torch.arange(VOCAB_SIZE)).sum(), other)[0])


@both_forms
@both_devices
def test_bf16_is_no_worse_than_twice_the_plain_form(group: dist.ProcessGroup, recompute: bool, device: str) -> None:
    data = case(64, dtype=torch.bfloat16, hidden_size=128, device=device)
    truth = Case(*(x.detach().double().requires_grad_() for x in data[:2]), data.labels, data.weights)
    logps = linear_vocab_parallel_logps(
        data.hidden, data.weight, data.labels, vocab_size=VOCAB_SIZE, group=group, block_rows=8, recompute=recompute
    )
    logits = (data.hidden @ data.weight.t())[:, :VOCAB_SIZE].float()
    plain_logps = logits.log_softmax(-1).gather(1, data.labels[:, None])[:, 0]
    true_logps = plain(truth, torch.arange(VOCAB_SIZE))
    assert logps.dtype == torch.float32
    assert (logps - true_logps).abs().max() <= 2 * (plain_logps - true_logps).abs().max()

    inputs = (data.hidden, data.weight)
    ours = torch.autograd.grad((logps * data.weights).sum(), inputs)
    theirs = torch.autograd.grad((plain_logps * data.weights).sum(), inputs)
    true = torch.autograd.grad((true_logps * data.weights).sum(), truth[:2])
    for our, their, exact in zip(ours, theirs, true, strict=True):
        assert our.dtype == torch.bfloat16
        assert (our - exact).abs().max() <= 2 * (their - exact).abs().max()
        assert (our - exact).norm() <= 2 * (their - exact).norm()


def test_logits_are_never_held(group: dist.ProcessGroup) -> None:
    num_tokens, block_rows = 37, 8
    data = case(num_tokens)
    weight = parameter(data.weight)
    with MadeTensors() as made:
        logps = linear_vocab_parallel_logps(
            data.hidden, weight, data.labels, vocab_size=VOCAB_SIZE, group=group, block_rows=block_rows
        )
        logps.sum().backward()
    assert 0 < made.largest <= num_tokens * max(block_rows, HIDDEN)


def kept_for_backward(group: dist.ProcessGroup, recompute: bool) -> tuple[Tensor, list[weakref.ref[Tensor]]]:
    """Log-probabilities of 5 of 37 tokens, and the saved tensors as large as their probabilities of 40 rows."""
    data, kept = case(37, dtype=torch.bfloat16), []

    def save(tensor: Tensor) -> Tensor:
        if tensor.numel() == 5 * 40:
            assert tensor.dtype == torch.bfloat16
            kept.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        logps = linear_vocab_parallel_logps(
            data.hidden, parameter(data.weight, torch.float32), data.labels,
            vocab_size=40, group=group, loss_mask=torch.arange(37) < 5, block_rows=8, recompute=recompute,
        )  # fmt: skip
    return logps, kept


def test_kept_probabilities_do_not_survive_backward(group: dist.ProcessGroup) -> None:
    logps, kept = kept_for_backward(group, recompute=False)
    assert len(kept) == 1
    assert kept[0]() is not None
    logps.sum().backward()
    assert kept[0]() is None


def test_nothing_is_kept_that_is_computed_again(group: dist.ProcessGroup) -> None:
    assert kept_for_backward(group, recompute=True)[1] == []


def most_held(group: dist.ProcessGroup, *, grad_mode: bool, requires_grad: bool) -> int:
    """Elements of what forward holds at a time, of 37 tokens whose probabilities are to be kept."""
    data = case(37)
    hidden, weight = (x.detach().requires_grad_(requires_grad) for x in (data.hidden, data.weight))
    with torch.set_grad_enabled(grad_mode), MadeTensors() as made:
        linear_vocab_parallel_logps(
            hidden, weight, data.labels, vocab_size=VOCAB_SIZE, group=group, block_rows=8, recompute=False
        )
    return made.most


@pytest.mark.parametrize(("grad_mode", "requires_grad"), [(False, True), (True, False)])
def test_nothing_is_kept_without_gradients(group: dist.ProcessGroup, grad_mode: bool, requires_grad: bool) -> None:
    differentiated = most_held(group, grad_mode=True, requires_grad=True)
    four_blocks = 37 * 4 * 8  # those before the last whole one
    assert most_held(group, grad_mode=grad_mode, requires_grad=requires_grad) <= differentiated - four_blocks


def parameter(values: Tensor, main_grad_dtype: torch.dtype = torch.float64) -> nn.Parameter:
    """A parameter as Megatron's DDP leaves it: a buffer for its gradient, flag down."""
    weight = nn.Parameter(values.detach().clone())
    weight.main_grad = torch.zeros(weight.shape, dtype=main_grad_dtype, device=weight.device)
    weight.grad_added_to_main_grad = False
    return weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@both_forms
@both_devices
def test_micro_batches_add_up_in_main_grad(
    group: dist.ProcessGroup, dtype: torch.dtype, recompute: bool, device: str
) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    weight = parameter(case(20, dtype=dtype, device=device).weight, wide)
    weight.main_grad[VOCAB_SIZE:] = torch.nan  # rows that are not in the softmax are not touched
    total = torch.zeros(VOCAB_SIZE, HIDDEN, dtype=torch.float64, device=device)
    for num_tokens in (20, 33):
        data = case(num_tokens, dtype=dtype, device=device)
        logps = linear_vocab_parallel_logps(
            data.hidden, weight, data.labels, vocab_size=VOCAB_SIZE, group=group, recompute=recompute
        )
        (logps * data.weights.to(wide)).sum().backward()
        assert weight.grad_added_to_main_grad
        assert weight.grad.shape == weight.shape and weight.grad.dtype == dtype
        weight.grad = None  # as the hook does
        exact = Case(data.hidden.double(), weight.detach().double().requires_grad_(), data.labels, data.weights)
        truth = (plain(exact, torch.arange(VOCAB_SIZE)) * data.weights).sum()
        total += torch.autograd.grad(truth, exact.weight)[0][:VOCAB_SIZE]
    # bf16: sums up to 10 of logits and gradients that were rounded to 8 bits; how well, the test against the plain form
    # says.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(weight.main_grad[:VOCAB_SIZE].double(), total, atol=tolerance, rtol=tolerance)
    assert weight.main_grad[VOCAB_SIZE:].isnan().all()


class Model(nn.Module):
    """The two ends of a language model: what shares, or does not share, the word embeddings."""

    def __init__(self, group: dist.ProcessGroup, *, tied: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(PADDED, HIDDEN))
        self.head = None if tied else nn.Parameter(torch.randn(PADDED, HIDDEN))
        self.weight.zero_out_wgrad = tied  # LanguageModule.setup_embeddings_and_output_layer, one pipeline stage
        self.group = group

    def forward(self, token_ids: Tensor, labels: Tensor) -> Tensor:
        hidden = ops.dual_codebook_embedding(token_ids, self.weight).reshape(-1, HIDDEN)
        head = self.weight if self.head is None else self.head
        return linear_vocab_parallel_logps(hidden, head, labels, vocab_size=VOCAB_SIZE, group=self.group).sum()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_under_megatron_ddp(
    group: dist.ProcessGroup, tied: bool, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(weight: Any) -> Tensor:
        weight.grad_added_to_main_grad = True
        return torch.full_like(weight, torch.nan)

    for name in ("table_gradient", "linear_vocab_parallel_logps"):
        monkeypatch.setattr(sys.modules[f"megatron_aqaa.ops.{name}"], "dummy_gradient", poisoned)
    torch.manual_seed(0)
    model = Model(group, tied=tied)
    copies = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    micro_batches = torch.randint(0, VOCAB_SIZE, (2, 3, 20))
    ddp = DistributedDataParallel(
        TransformerConfig(num_layers=1, hidden_size=HIDDEN, num_attention_heads=1),
        DistributedDataParallelConfig(grad_reduce_in_fp32=True, overlap_grad_reduce=overlap),
        model,
    )
    for _ in range(2):  # the second iteration starts from the flags and buffers that the first one left
        ddp.zero_grad_buffer()
        with ddp.no_sync():
            ddp(micro_batches[0], micro_batches[1].flatten()).backward()
        ddp(micro_batches[1], micro_batches[0].flatten()).backward()
        ddp.finish_grad_sync()
    for token_ids, labels in (micro_batches, micro_batches.flip(0)):
        hidden = copies["weight"][token_ids].transpose(0, 1).reshape(-1, HIDDEN)
        logits = hidden @ copies.get("head", copies["weight"]).t()
        reference(logits, labels.flatten(), torch.arange(VOCAB_SIZE)).sum().backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.main_grad, copies[name].grad, atol=1e-5, rtol=1e-5)
    assert getattr(model, "weight" if tied else "head").grad_added_to_main_grad is not tied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([0, 41, 2])}, "label 41 at index 1 is not among the ids of the softmax"),
        ({"labels": torch.tensor([0, 5, 2]), "allowed": range(5)}, "label 5 at index 1"),
        ({"labels": torch.tensor([0, 1])}, r"labels \[2\] must be \[3\]"),
        ({"loss_mask": torch.ones(2)}, r"loss_mask \[2\] and labels \[3\] must be \[3\]"),
        ({"block_rows": 0}, "block_rows = 0: must be at least 1"),
        ({"vocab_size": 49}, "vocab_size = 49 must lie in 1 … 48"),
        ({"weight": torch.zeros(PADDED, HIDDEN + 1)}, "must agree in their last size"),
    ],
)
def test_wrong_input_is_named(group: dist.ProcessGroup, changes: dict[str, Any], message: str) -> None:
    arguments = {
        "hidden": torch.zeros(3, HIDDEN),
        "weight": torch.zeros(PADDED, HIDDEN),
        "labels": torch.tensor([0, 1, 2]),
        "vocab_size": VOCAB_SIZE,
        "group": group,
    }
    with pytest.raises(ValueError, match=message):
        linear_vocab_parallel_logps(**{**arguments, **changes})
