"""Model FLOPs by hand, and against PyTorch's own count of a real step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_aqaa import platform
from megatron_aqaa.model import ModelConfig
from megatron_aqaa.training.lm_state import new_state
from megatron_aqaa.training.monitoring.flops import peak_tflops, step_flops
from megatron_aqaa.training.optimizer import OptimizerConfig
from megatron_aqaa.training.schedule import gradients
from megatron_aqaa.vocabulary import Vocabulary

MODEL = ModelConfig(2, 32, 48, 4, 2, params_dtype="fp32")
VOCABULARY = Vocabulary(text_size=60, linguistic_size=16, semantic_size=32, size=128, audio_start=108, audio_end=109)
B, S = 2, 64


@pytest.fixture
def one_process() -> Iterator[None]:
    platform.initialize(platform.ParallelConfig())
    yield
    platform.shutdown()


def test_by_hand() -> None:
    """Query 4 × 8 = 32 wide, keys and values 2 × 8 = 16 each."""
    matrices = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    layer = 2 * matrices + 2 * 32 * S
    assert step_flops(MODEL, 128, S, positions=10, targets=3) == 3 * (10 * 2 * layer + 3 * 2 * 32 * 128)


def test_the_130b_takes_six_flops_for_each_parameter_and_position() -> None:
    model = ModelConfig(88, 12288, 31232, 96, 8)
    flops = step_flops(model, 74752, 4096, positions=1, targets=1)
    without_embedding = 131_946_590_208 - 74752 * 12288
    attention = 3 * 88 * 2 * 4096 * 12288
    assert flops - attention == pytest.approx(6 * without_embedding, rel=1e-4)  # norms are parameters without product


@pytest.mark.usefixtures("one_process")
def test_pytorch_counts_the_same() -> None:
    """Of all products with weights; those of attention depend on the back end, which leaves out what is masked."""
    state = new_state(MODEL, VOCABULARY, platform.ParallelConfig(), OptimizerConfig(learning_rate=1e-3), steps=4)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 108, (B, S + 1), generator=random)
    mask = (torch.rand(B, S, generator=random) < 0.4).float()
    documents = torch.zeros(B, S, dtype=torch.int64)
    batch = {"token_ids": ids[:, :-1], "labels": ids[:, 1:], "loss_mask": mask, "document_ids": documents}
    loss = lambda losses, batch: ((losses * mask).sum(), mask.sum().int(), losses.sum().detach())
    # what is added in place, as the head's gradients are, PyTorch does not count by itself
    in_place = {torch.ops.aten.addmm_: lambda out, left, right, **_: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        gradients(state.model_chunks, state.optimizer, [iter([batch])], loss, 1, (B, S))
    with_weights = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "bmm" not in str(op))
    assert with_weights == step_flops(MODEL, 128, 0, positions=B * S, targets=float(mask.sum()))


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.5), ("NVIDIA H200", 989.4), ("NVIDIA L40S", 362.0),
        ("NVIDIA A100-SXM4-80GB", 312.0), ("cpu", None), ("NVIDIA GeForce GTX 1080", None),
    ],
)  # fmt: skip
def test_peak_by_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
