"""The project's Adam: torch's numbers, a step per group, a resume that stays exact on the second step."""

from __future__ import annotations

import copy

import pytest
import torch

from megatron_aqaa.training.adam import Adam

SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((4, 3), (5,), (2, 2))]


def adopt(values: list[torch.nn.Parameter]) -> Adam:
    return Adam.adopt(torch.optim.AdamW(values, **SETTINGS))


def take_step(optimizer: torch.optim.Optimizer, values: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for value in values:
        value.grad = torch.randn(value.shape, generator=generator)
    optimizer.step()


def test_equals_torch_adamw() -> None:
    ours, theirs = parameters(), parameters()
    our_optimizer, their_optimizer = adopt(ours), torch.optim.AdamW(theirs, fused=True, **SETTINGS)
    for seed in range(4):
        take_step(our_optimizer, ours, seed)
        take_step(their_optimizer, theirs, seed)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_two_steps_after_a_resume_are_exact() -> None:
    """torch's AdamW, restored from one shared step tensor as Megatron does, is right for one step only."""
    straight = parameters()
    optimizer = adopt(straight)
    for seed in range(2):
        take_step(optimizer, straight, seed)
    resumed = copy.deepcopy(straight)
    restored = adopt(resumed)
    content = copy.deepcopy(optimizer.state_dict())
    shared = torch.tensor(2.0)
    for state in content["state"].values():
        state["step"] = shared  # what Megatron-Core 0.16.1 hands over
    restored.load_state_dict(content)
    for seed in range(2, 4):
        take_step(optimizer, straight, seed)
        take_step(restored, resumed, seed)
        for a, b in zip(straight, resumed, strict=True):
            assert torch.equal(a, b)


def test_state_is_there_before_the_first_step() -> None:
    content = adopt(parameters()).state_dict()
    assert {float(state["step"]) for state in content["state"].values()} == {0.0}
    assert all(set(state) == {"exp_avg", "exp_avg_sq", "step"} for state in content["state"].values())


def test_different_steps_in_one_group_are_refused() -> None:
    optimizer = adopt(parameters())
    content = optimizer.state_dict()
    content["state"][0]["step"] = torch.tensor(5.0)
    with pytest.raises(ValueError, match="different steps"):
        optimizer.load_state_dict(content)
