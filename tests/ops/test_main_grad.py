"""Backward straight into Megatron's `main_grad`, under the hook of Megatron's own DDP."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from megatron_aqaa import ops, platform
from megatron_aqaa.ops import table_gradient

ROWS, HIDDEN = 30, 6


def parameter(dtype=torch.bfloat16):
    """A parameter as Megatron's DDP leaves it: fp32 buffer, flag down."""
    weight = nn.Parameter(torch.randn(ROWS, HIDDEN, dtype=dtype))
    weight.main_grad = torch.zeros(ROWS, HIDDEN)
    weight.grad_added_to_main_grad = False
    return weight


def run(weight, token_ids, grad_output, scale=1.0):
    ops.dual_codebook_embedding(token_ids, weight, scale=scale).backward(grad_output)


def expected(token_ids, grad_output, scale=1.0):
    out = torch.zeros(ROWS, HIDDEN, dtype=torch.float64)
    return out.index_add_(0, token_ids.t().flatten(), scale * grad_output.reshape(-1, HIDDEN).double())


def test_micro_batches_add_up_in_fp32():
    weight, total = parameter(), torch.zeros(ROWS, HIDDEN, dtype=torch.float64)
    for seed in range(3):
        torch.manual_seed(seed)
        token_ids, grad_output = torch.randint(0, ROWS, (2, 40)), torch.randn(40, 2, HIDDEN).bfloat16()
        run(weight, token_ids, grad_output, scale=0.5)
        total += expected(token_ids, grad_output, 0.5)
        weight.grad = None  # as the hook does
    torch.testing.assert_close(weight.main_grad.double(), total, atol=1e-5, rtol=1e-5)


def test_the_returned_gradient_is_a_dummy_that_says_so():
    weight = parameter()
    run(weight, torch.tensor([[1, 2]]), torch.ones(2, 1, HIDDEN).bfloat16())
    assert weight.grad_added_to_main_grad
    assert weight.grad.shape == weight.shape
    assert weight.grad.dtype == weight.dtype
    assert weight.grad.data_ptr() != weight.main_grad.data_ptr()


def test_untouched_rows_of_main_grad_are_not_read():
    weight = parameter()
    weight.main_grad.fill_(torch.nan)
    weight.main_grad[4] = 0.0
    run(weight, torch.tensor([[4, 4]]), torch.ones(2, 1, HIDDEN).bfloat16())
    assert weight.main_grad[4].tolist() == [2.0] * HIDDEN
    assert weight.main_grad.isnan().sum() == (ROWS - 1) * HIDDEN


@pytest.mark.parametrize("change", ["tied head", "no buffer", "no flag", "fp64 beside fp32"])
def test_falls_back_to_an_ordinary_gradient(change):
    dtype = torch.float64 if change == "fp64 beside fp32" else torch.bfloat16
    weight = parameter(dtype)
    if change == "tied head":
        weight.zero_out_wgrad = True
    elif change == "no buffer":
        del weight.main_grad
    elif change == "no flag":
        del weight.grad_added_to_main_grad
    token_ids, grad_output = torch.randint(0, ROWS, (2, 8)), torch.randn(8, 2, HIDDEN).to(dtype)
    run(weight, token_ids, grad_output)
    torch.testing.assert_close(weight.grad.double(), expected(token_ids, grad_output), atol=0.03, rtol=0.01)
    assert not getattr(weight, "grad_added_to_main_grad", False)
    assert not getattr(weight, "main_grad", torch.zeros(1)).any()


def test_tied_head_and_embedding_share_one_gradient():
    weight = parameter(torch.float32)
    weight.zero_out_wgrad = True
    token_ids = torch.randint(0, ROWS, (2, 8))
    hidden = ops.dual_codebook_embedding(token_ids, weight)
    (hidden @ weight.t()).square().sum().backward()
    plain = weight.detach().clone().requires_grad_()
    (plain[token_ids].transpose(0, 1) @ plain.t()).square().sum().backward()
    torch.testing.assert_close(weight.grad, plain.grad)


def test_a_frozen_weight_gets_nothing():
    weight = parameter(torch.float32).requires_grad_(False)
    table = torch.zeros(3, HIDDEN, requires_grad=True)
    out = ops.dual_codebook_embedding(
        torch.tensor([[1, 9]]), weight, type_weight=table, linguistic_start=5, semantic_start=7, audio_stop=20
    )
    out.sum().backward()
    assert table.grad.sum(-1).tolist() == [HIDDEN, 0.0, HIDDEN]
    assert weight.grad is None
    assert not weight.main_grad.any()


class EmbeddingAndHead(nn.Module):
    """The two ends of a language model: what shares, or does not share, the word embeddings."""

    def __init__(self, tied):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ROWS, HIDDEN))
        self.head = None if tied else nn.Parameter(torch.randn(ROWS, HIDDEN))
        self.weight.zero_out_wgrad = tied  # LanguageModule.setup_embeddings_and_output_layer, one pipeline stage

    def forward(self, token_ids):
        hidden = ops.dual_codebook_embedding(token_ids, self.weight)
        return (hidden @ (self.weight if self.head is None else self.head).t()).square().sum()


@pytest.fixture(scope="module")
def _megatron():
    platform.initialize(platform.ParallelConfig())
    yield
    platform.shutdown()


@pytest.mark.usefixtures("_megatron")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("distributed_optimizer", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_under_megatron_ddp(tied, overlap, distributed_optimizer, dtype, monkeypatch):
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer import TransformerConfig

    def poisoned(weight):
        weight.grad_added_to_main_grad = True
        return torch.full_like(weight, torch.nan)

    monkeypatch.setattr(table_gradient, "dummy_gradient", poisoned)
    torch.manual_seed(0)
    model = EmbeddingAndHead(tied).to(platform.device(), dtype)
    plain = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    micro_batches = torch.randint(0, ROWS, (2, 3, 20), device=platform.device())
    ddp = DistributedDataParallel(
        TransformerConfig(num_layers=1, hidden_size=HIDDEN, num_attention_heads=1),
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, overlap_grad_reduce=overlap, use_distributed_optimizer=distributed_optimizer
        ),
        model,
    )
    for _ in range(2):  # the second iteration starts from the flags and buffers that the first one left
        ddp.zero_grad_buffer()
        with ddp.no_sync():
            ddp(micro_batches[0]).backward()
        ddp(micro_batches[1]).backward()
        ddp.finish_grad_sync()
    for token_ids in micro_batches:
        hidden = plain["weight"][token_ids].transpose(0, 1)
        (hidden @ plain.get("head", plain["weight"]).t()).square().sum().backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.main_grad, plain[name].grad.float(), atol=1e-3, rtol=1e-5)
    straight = not tied and dtype == torch.float32  # Megatron's buffer is fp32, and no kernel adds fp64 to that
    assert model.weight.grad_added_to_main_grad is straight
