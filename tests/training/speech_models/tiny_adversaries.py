"""A generator of one layer, a discriminator of two, and what they want of each other."""

from __future__ import annotations

from typing import Any

import torch

from megatron_aqaa.training.speech_models.adversarial_fit import Adversary
from megatron_aqaa.training.speech_models.adversarial_state import AdversarialFitConfig

CONFIG = AdversarialFitConfig(
    steps=8,
    generator_rate=0.01,
    discriminator_rate=0.01,
    warmup_steps=2,
    decay_ratio=0.5,
    ema_decay=0.9,
    checkpoint_interval=3,
    log_interval=1,
)


def networks(seed: int = 3) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(seed)
    generator = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    return generator, torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def batch_at(number: int) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(number))


def natural(batch: torch.Tensor) -> torch.Tensor:
    return batch[:, :2] + batch[:, 2:]


def judge(discriminator: Any, batch: torch.Tensor, made: torch.Tensor) -> dict[str, torch.Tensor]:
    assert not made.requires_grad
    real, fake = discriminator(natural(batch)), discriminator(made)
    loss = (1 - real).square().mean() + fake.square().mean()
    return {"loss": loss, "judging": loss, "spread": torch.cat((real, fake)).std()}


def convince(discriminator: Any, batch: torch.Tensor, made: torch.Tensor) -> dict[str, torch.Tensor]:
    distance = (made - natural(batch)).abs().mean()
    return {"loss": (1 - discriminator(made)).square().mean() + distance, "distance": distance}


def noisy(generator: Any, batch: torch.Tensor) -> torch.Tensor:
    return generator(batch + 0.1 * torch.randn_like(batch))


PLAIN = Adversary(lambda generator, batch: generator(batch), judge, convince)
NOISY = Adversary(noisy, judge, convince)
