"""The model on two tensor-parallel ranks beside one process: initial weights, logits, KV cache, empty targets."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.model import AQAAModel, build_model
from megatron_aqaa.platform import ParallelConfig
from tests.distributed.launch import run
from tests.model.sizes import TINY, VOCABULARY

pytestmark = pytest.mark.distributed

TP2 = ParallelConfig(tensor_model_parallel_size=2)
LENGTH, PROMPT, SEED = 20, 8, 5


class Outcome(NamedTuple):
    logits: Tensor
    cached_logits: Tensor
    greedy: Tensor
    losses: Tensor
    losses_without_targets: Tensor


def token_ids() -> Tensor:
    """[2, LENGTH]; labels fall on both halves of the vocabulary."""
    return torch.randint(0, VOCABULARY.size, (2, LENGTH), generator=torch.Generator().manual_seed(9))


def outcome(layout: ParallelConfig) -> Outcome:
    """What a model with the initial weights of SEED computes: equal at every tensor-parallel size."""
    platform.initialize(layout, SEED)
    model, ids = build_model(TINY, VOCABULARY, layout)[0], token_ids()
    labels = ids.roll(-1, 1)
    losses = model(ids, labels=labels)
    empty = model(ids, labels=labels, loss_mask=torch.zeros(2, LENGTH))
    (losses.sum() + empty.sum()).backward()  # no rank may skip a collective
    with torch.inference_mode():
        logits = model.eval()(ids)
        return Outcome(logits, _cached(model, ids), _greedy(model, ids[:, :PROMPT]), losses.detach(), empty.detach())


def _cached(model: AQAAModel, ids: Tensor) -> Tensor:
    """Logits [2, LENGTH − PROMPT + 1, V] with a KV cache: the prompt at once, then one token at a time."""
    context = StaticInferenceContext(2, LENGTH)
    parts = []
    for start, stop in [(0, PROMPT), *((i, i + 1) for i in range(PROMPT, LENGTH))]:
        parts.append(model(ids[:, start:stop], inference_context=context))
        context.sequence_len_offset = stop
    return torch.cat(parts, 1)


def _greedy(model: AQAAModel, ids: Tensor) -> Tensor:
    """[2, LENGTH] continued greedily with a KV cache."""
    context, taken = StaticInferenceContext(2, LENGTH), ids
    while ids.shape[1] < LENGTH:
        following = model(taken, inference_context=context).argmax(-1)
        context.sequence_len_offset += taken.shape[1]
        ids, taken = torch.cat([ids, following], 1), following
    return ids


@pytest.fixture(scope="module")
def serial() -> Outcome:
    result = outcome(ParallelConfig())
    platform.shutdown()
    return result


@pytest.fixture(scope="module")
def split() -> list[Outcome]:
    return run(outcome, 2, TP2)


def test_both_ranks_have_the_logits_of_one_process(serial: Outcome, split: list[Outcome]) -> None:
    for rank in split:
        assert rank.logits.shape == (2, LENGTH, VOCABULARY.size)
        torch.testing.assert_close(rank.logits, serial.logits, rtol=1e-5, atol=1e-5)


def test_the_cache_gives_the_logits_of_whole_sequences(serial: Outcome, split: list[Outcome]) -> None:
    for result in (serial, *split):
        torch.testing.assert_close(result.cached_logits, serial.logits[:, PROMPT - 1 :], rtol=1e-5, atol=1e-5)


def test_greedy_answers_are_the_same(serial: Outcome, split: list[Outcome]) -> None:
    for rank in split:
        assert torch.equal(rank.greedy, serial.greedy)


def test_losses_are_the_same(serial: Outcome, split: list[Outcome]) -> None:
    for rank in split:
        torch.testing.assert_close(rank.losses, serial.losses, rtol=1e-5, atol=1e-5)
        assert not rank.losses_without_targets.any()
