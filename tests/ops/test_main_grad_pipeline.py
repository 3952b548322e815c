"""Backward into `main_grad` under pipeline parallelism: what Megatron's buffers hold must not depend on the way there.

The same micro-batches go through Megatron's schedule twice: with the rows added straight into `main_grad`, the dummy
gradient filled with NaN, and with an ordinary gradient, which Megatron's own hook adds.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_aqaa import platform
from megatron_aqaa.model import build_model
from megatron_aqaa.ops import table_gradient
from megatron_aqaa.platform import ParallelConfig
from tests.distributed.launch import run
from tests.model.sizes import VOCABULARY, variant

pytestmark = pytest.mark.distributed

BATCH, LENGTH = 2, 16
CASES = list(itertools.product([1, 2], [False, True], [False, True]))  # pipeline stages, tied, overlap


def poisoned(weight):
    weight.grad_added_to_main_grad = True
    return torch.full_like(weight, torch.nan)


def wrapped(stages, tied, overlap):
    layout = ParallelConfig(pipeline_model_parallel_size=stages)
    platform.initialize(layout, seed=3)
    model = variant(codebook_type_embedding=True, untie_embeddings_and_output_weights=not tied)
    (module,) = build_model(model, VOCABULARY, layout)
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=overlap, use_distributed_optimizer=True
    )
    ddp = DistributedDataParallel(module.config, config, module)
    module.config.finalize_model_grads_func = finalize_model_grads
    module.config.no_sync_func = ddp.no_sync if overlap else None
    return ddp


def micro_batches():
    random = torch.Generator().manual_seed(0)
    for _ in range(2):
        ids = torch.randint(0, VOCABULARY.size, (BATCH, LENGTH + 1), generator=random)
        documents = torch.zeros(BATCH, LENGTH, dtype=torch.long)
        mask = torch.ones(BATCH, LENGTH)
        yield {"token_ids": ids[:, :-1], "labels": ids[:, 1:], "loss_mask": mask, "document_ids": documents}


def forward_step(batches, model):
    return model(**next(batches)), lambda losses: (losses.float().sum(), torch.tensor(losses.numel()).int(), {})


def gradients(ddp):
    """main_grad of every parameter after two micro-batches, as this rank's share of the buffer has it."""
    ddp.zero_grad_buffer()
    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=micro_batches(),
        model=ddp,
        num_microbatches=2,
        micro_batch_size=BATCH,
        seq_length=LENGTH,
        forward_only=False,
    )
    return {name: value.main_grad.clone() for name, value in ddp.module.named_parameters()}


def both_ways(stages, tied, overlap):
    """On one rank: gradients straight, gradients by the hook, whether the first were straight."""
    ddp = wrapped(stages, tied, overlap)
    table_gradient.dummy_gradient = poisoned  # in this process of the test alone
    words = ddp.module.embedding.word_embeddings.weight if ddp.module.pre_process else None
    straight = [gradients(ddp) for _ in range(2)][1]  # from the flags that an iteration left
    went_straight = words is not None and words.grad_added_to_main_grad
    accumulates, table_gradient.accumulates_in_main_grad = table_gradient.accumulates_in_main_grad, lambda weight: False
    ordinary = gradients(ddp)
    table_gradient.accumulates_in_main_grad = accumulates
    return straight, ordinary, went_straight


def all_cases():
    return [both_ways(*case) for case in CASES]


@pytest.fixture(scope="module")
def ranks():
    return run(all_cases, 2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"PP{case[0]}-{'tied' * case[1]}-{'overlap' * case[2]}")
def test_straight_equals_ordinary(case, ranks):
    stages, tied, _ = case
    for rank, results in enumerate(ranks):
        straight, ordinary, went_straight = results[CASES.index(case)]
        # A tied head on the same stage needs an ordinary gradient; a stage without an embedding has none.
        assert went_straight is (not tied if stages == 1 else rank == 0)
        for name, gradient in ordinary.items():
            torch.testing.assert_close(straight[name], gradient, atol=1e-6, rtol=1e-5)
            assert gradient.isfinite().all()
        assert any(gradient.any() for gradient in ordinary.values())
