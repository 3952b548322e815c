"""Both forms of the log-probabilities on two tensor-parallel ranks, alone and in the model, beside one process."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.model import ModelConfig
from megatron_aqaa.ops import linear_vocab_parallel_logps, vocab_parallel_logps
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.lm_state import new_state
from megatron_aqaa.training.lm_step import Batch, StepResult, train_step
from megatron_aqaa.training.optimizer import OptimizerConfig
from tests.distributed.launch import run
from tests.model.sizes import TINY, VOCABULARY
from tests.ops.test_vocab_parallel_logps import reference

pytestmark = pytest.mark.distributed

RANKS, PADDED, HIDDEN, TOKENS = 2, 48, 6, 31
CASES: dict[str, tuple[int, Any, list[int]]] = {
    "all": (41, None, list(range(41))),
    "across the border": (41, range(20, 30), list(range(20, 30))),
    "on one rank": (41, range(30, 41), list(range(30, 41))),
    "two ranges": (41, [range(3), range(40, 41)], [0, 1, 2, 40]),
    "a rank of padding": (20, None, list(range(20))),
}


class Outcome(NamedTuple):
    """Of one rank; `single` is the same from fp32 inputs, all tokens."""

    logps: Tensor
    rows_gradient: Tensor
    hidden_gradient: Tensor
    single: Tensor


def inputs(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden, weight (padded rows are NaN), labels, loss mask."""
    vocab_size, _, ids = CASES[name]
    random = torch.Generator().manual_seed(4)
    hidden = torch.randn(TOKENS, HIDDEN, generator=random, dtype=torch.float64)
    weight = torch.randn(PADDED, HIDDEN, generator=random, dtype=torch.float64)
    weight[vocab_size:] = torch.nan
    labels = torch.tensor(ids)[torch.randint(0, len(ids), (TOKENS,), generator=random)]
    return hidden, weight, labels, torch.randint(0, 3, (TOKENS,), generator=random).double()


def own_rows(weight: Tensor) -> Tensor:
    return weight.chunk(dist.get_world_size())[dist.get_rank()].clone().requires_grad_()


def from_logits(name: str) -> Outcome:
    vocab_size, allowed, _ = CASES[name]
    hidden, weight, labels, weights = inputs(name)
    hidden.requires_grad_()
    rows = own_rows(weight)
    logits = hidden @ rows.t()
    arguments: Any = {"vocab_size": vocab_size, "group": dist.group.WORLD, "allowed": allowed}
    single = vocab_parallel_logps(logits.detach().float(), labels, **arguments)
    logps = vocab_parallel_logps(logits, labels, **arguments)
    (logits_gradient,) = torch.autograd.grad((logps * weights).sum(), logits)
    return Outcome(logps.detach(), logits_gradient.t() @ hidden.detach(), torch.zeros(0), single)


def from_hidden(name: str, recompute: bool = True) -> Outcome:
    vocab_size, allowed, _ = CASES[name]
    hidden, weight, labels, weights = inputs(name)
    hidden.requires_grad_()
    rows = own_rows(weight)
    arguments: Any = {"vocab_size": vocab_size, "group": dist.group.WORLD, "allowed": allowed, "block_rows": 7}
    arguments["recompute"] = recompute
    single = linear_vocab_parallel_logps(hidden.detach().float(), rows.detach().float(), labels, **arguments)
    logps = linear_vocab_parallel_logps(hidden, rows, labels, loss_mask=weights, **arguments)
    (logps * weights).sum().backward()
    return Outcome(logps.detach(), rows.grad, hidden.grad, single)


def from_hidden_kept(name: str) -> Outcome:
    return from_hidden(name, recompute=False)


def expected(name: str) -> Outcome:
    """From the definition, in one process."""
    hidden, weight, labels, weights = inputs(name)
    hidden.requires_grad_()
    rows = weight.nan_to_num(0).requires_grad_()
    logps = reference(hidden @ rows.t(), labels, torch.tensor(CASES[name][2]))
    (logps * weights).sum().backward()
    return Outcome(logps.detach(), rows.grad, hidden.grad, logps.detach().float())


def no_tokens(recompute: bool) -> Tensor:
    """Gradient of this rank's rows where no token counts: no rank may skip a collective."""
    hidden, weight, labels, _ = inputs("all")
    hidden.requires_grad_()
    rows = own_rows(weight)
    arguments: Any = {"vocab_size": 41, "group": dist.group.WORLD}
    nothing = torch.zeros(TOKENS)
    logps = linear_vocab_parallel_logps(hidden, rows, labels, loss_mask=nothing, recompute=recompute, **arguments)
    logits = vocab_parallel_logps((hidden @ rows.t())[:0], labels[:0], **arguments)
    (logps.sum() + logits.sum()).backward()
    return rows.grad


def forbidden_rows() -> tuple[Tensor, Tensor]:
    """Log-probabilities and gradient of this rank's logits where all logits of rank 1 are −inf."""
    random = torch.Generator().manual_seed(5)
    logits = torch.randn(TOKENS, PADDED, generator=random, dtype=torch.float64)
    logits[:, PADDED // RANKS :] = -torch.inf
    own = logits.chunk(RANKS, 1)[dist.get_rank()].clone().requires_grad_()
    logps = vocab_parallel_logps(own, torch.arange(TOKENS) % 24, vocab_size=PADDED, group=dist.group.WORLD)
    logps.sum().backward()
    return logps.detach(), own.grad


def operators() -> dict[str, Any]:
    outcomes: dict[str, Any] = {
        f"{form.__name__} {name}": form(name) for form in (from_logits, from_hidden, from_hidden_kept) for name in CASES
    }
    return {**outcomes, "no tokens": [no_tokens(True), no_tokens(False)], "forbidden rows": forbidden_rows()}


TP2, PP2 = ParallelConfig(tensor_model_parallel_size=2), ParallelConfig(pipeline_model_parallel_size=2)
TP2_SP = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
UNTIED, TIED = TINY, dataclasses.replace(TINY, untie_embeddings_and_output_weights=False)
RUNS = {
    "TP2": (UNTIED, TP2),
    "TP2 tied": (TIED, TP2),
    "TP2+SP": (UNTIED, TP2_SP),
    "TP2+SP tied": (TIED, TP2_SP),
    "PP2": (UNTIED, PP2),
    "PP2 tied": (TIED, PP2),
}
MICRO_BATCHES, BATCH, LENGTH, STEPS = 2, 2, 16, 2


def batch(seed: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY.size, (BATCH, LENGTH + 1), generator=random)
    return {
        "token_ids": ids[:, :-1].contiguous(),
        "labels": ids[:, 1:].contiguous(),
        "loss_mask": torch.randint(0, 3, (BATCH, LENGTH), generator=random).float(),
        "document_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long),
    }


class Trained(NamedTuple):
    steps: list[StepResult]
    gradients: dict[str, Tensor]


def trained(model: ModelConfig, layout: ParallelConfig, recompute_logits: bool) -> Trained:
    """Two steps of two micro-batches under Megatron's DDP, and this rank's gradients of the second."""
    platform.initialize(layout, seed=3)
    state = new_state(
        dataclasses.replace(model, recompute_logits=recompute_logits),
        VOCABULARY,
        layout,
        OptimizerConfig(learning_rate=1e-2),
        steps=10,
    )
    results = []
    for step in range(STEPS):
        batches = (batch(2 * step + index) for index in range(MICRO_BATCHES))
        results.append(
            train_step(state.model_chunks, state.optimizer, [batches], VOCABULARY, MICRO_BATCHES, (BATCH, LENGTH))
        )
    names = state.model_chunks[0].module.named_parameters()
    return Trained(results, {name: value.main_grad.clone() for name, value in names})


def training(runs: dict[str, tuple[ModelConfig, ParallelConfig]]) -> dict[str, tuple[Trained, Trained]]:
    return {name: (trained(*case, False), trained(*case, True)) for name, case in runs.items()}


def both() -> tuple[dict[str, Any], dict[str, tuple[Trained, Trained]]]:
    return operators(), training(RUNS)


@pytest.fixture(scope="module")
def two() -> list[tuple[dict[str, Any], dict[str, tuple[Trained, Trained]]]]:
    return run(both, RANKS)


@pytest.fixture(scope="module")
def one() -> dict[str, tuple[Trained, Trained]]:
    result = training({"untied": (UNTIED, ParallelConfig()), "tied": (TIED, ParallelConfig())})
    platform.shutdown()
    return result


@pytest.mark.parametrize("form", ["from_logits", "from_hidden", "from_hidden_kept"])
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_definition(name: str, form: str, two: list[Any]) -> None:
    ranks = [operators[f"{form} {name}"] for operators, _ in two]
    truth = expected(name)
    counts = (inputs(name)[3] > 0) if form != "from_logits" else torch.ones(TOKENS, dtype=torch.bool)
    for rank in ranks:
        assert torch.equal(rank.logps, ranks[0].logps)
        torch.testing.assert_close(rank.logps, truth.logps * counts, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(rank.single, truth.single, rtol=1e-5, atol=1e-5)  # fp32 logits up to 10
        assert torch.equal(rank.hidden_gradient, ranks[0].hidden_gradient)
    rows_gradient = torch.cat([rank.rows_gradient for rank in ranks])
    torch.testing.assert_close(rows_gradient, truth.rows_gradient, rtol=1e-12, atol=1e-12)
    if form != "from_logits":
        torch.testing.assert_close(ranks[0].hidden_gradient, truth.hidden_gradient, rtol=1e-12, atol=1e-12)


def test_no_token_counts(two: list[Any]) -> None:
    for operators, _ in two:
        for gradient in operators["no tokens"]:
            assert not gradient.any()


def test_a_rank_whose_logits_are_all_minus_infinity(two: list[Any]) -> None:
    random = torch.Generator().manual_seed(5)
    logits = torch.randn(TOKENS, PADDED, generator=random, dtype=torch.float64)[:, : PADDED // RANKS].requires_grad_()
    logps = reference(logits, torch.arange(TOKENS) % 24, torch.arange(PADDED // RANKS))
    logps.sum().backward()
    for rank, (operators, _) in enumerate(two):
        got, gradient = operators["forbidden rows"]
        torch.testing.assert_close(got, logps.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, logits.grad if rank == 0 else torch.zeros_like(gradient))


@pytest.mark.parametrize("name", RUNS)
def test_the_model_does_not_depend_on_how_backward_gets_the_logits(name: str, two: list[Any]) -> None:
    for _, runs in two:
        assert_equal(*runs[name])


@pytest.mark.parametrize("name", ["untied", "tied"])
def test_nor_in_one_process(name: str, one: dict[str, tuple[Trained, Trained]]) -> None:
    assert_equal(*one[name])


@pytest.mark.parametrize("name", [name for name, (_, layout) in RUNS.items() if layout != PP2])
def test_the_model_on_two_ranks_trains_as_in_one_process(name: str, one: dict[str, Any], two: list[Any]) -> None:
    plain, _ = one["tied" if "tied" in name else "untied"]
    for _, runs in two:
        assert_equal_steps(plain, runs[name][1])


def assert_equal_steps(plain: Trained, other: Trained) -> None:
    for step, other_step in zip(plain.steps, other.steps, strict=True):
        assert other_step.loss == pytest.approx(step.loss, rel=1e-5)
        assert other_step.grad_norm == pytest.approx(step.grad_norm, rel=1e-5)


def assert_equal(plain: Trained, recomputing: Trained) -> None:
    assert_equal_steps(plain, recomputing)
    assert plain.steps[1].loss != plain.steps[0].loss
    assert plain.gradients.keys() == recomputing.gradients.keys()
    for name, gradient in plain.gradients.items():
        assert gradient.any(), name
        # fp32 sums over blocks in another order; the second step's weights have seen the first's differences.
        torch.testing.assert_close(recomputing.gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
