"""Two networks that are trained against each other: settings, optimizers, averages, guards, and their checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa import platform
from megatron_aqaa.network_file import save_whole
from megatron_aqaa.training.speech_models.discriminator_collapse import CollapseConfig, CollapseGuard
from megatron_aqaa.training.speech_models.divergence import DivergenceConfig, DivergenceGuard
from megatron_aqaa.training.speech_models.weight_average import WeightAverage


@dataclass(frozen=True)
class AdversarialFitConfig:
    """Schedule and optimizers; the defaults are the published ones (Adam at 2e-4, clipped at 5).

    Attributes:
        steps: steps in all, each of discriminators and then generator.
        generator_rate: learning rate of the generator.
        discriminator_rate: learning rate of the discriminators.
        warmup_steps: over which both rise from zero.
        decay_ratio: share of the steps, at the end, over which both fall to nothing; 0 keeps them flat.
        clip_grad: norm at which the gradient of either is clipped.
        ema_decay: the exported generator is an exponential moving average; 0 exports the last weights.
        num_threads: CPU threads of this process.
        autocast: bf16 autocast for all forward passes.
        num_shares: as in `FitConfig`.
        divergence: when training is given up because of the generator's loss.
        collapse: when it is given up because of the discriminators.
        validation_interval: steps between validations; 0 for none.
    """

    steps: int
    generator_rate: float = 2e-4
    discriminator_rate: float = 2e-4
    warmup_steps: int = 0
    decay_ratio: float = 0.0
    betas: tuple[float, float] = (0.8, 0.99)
    clip_grad: float = 5.0
    ema_decay: float = 0.0
    seed: int = 0
    num_threads: int = 1
    autocast: bool = False
    num_shares: int = 1
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    checkpoint_interval: int = 1000
    log_interval: int = 50
    validation_interval: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.checkpoint_interval < 1 or self.log_interval < 1 or self.validation_interval < 0:
            raise ValueError("steps, checkpoint_interval and log_interval must be at least 1, validation_interval 0")
        if not 0 <= self.ema_decay < 1 or not 0 <= self.decay_ratio <= 1:
            raise ValueError(
                f"ema_decay = {self.ema_decay} must lie in 0 … 1, without 1; decay_ratio = {self.decay_ratio} in 0 … 1"
            )

    def rate_ratio(self, step: int) -> float:
        """Share of the peak rates at step 0 … steps − 1."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay_steps = self.decay_ratio * self.steps
        return warmup * (min(1.0, (self.steps - step) / decay_steps) if decay_steps else 1.0)


class Half:
    """One of the two networks, its optimizer and its average."""

    def __init__(self, network: torch.nn.Module, rate: float, config: AdversarialFitConfig) -> None:
        self.network, self.peak_rate, self.config = network.to(platform.device()).train(), rate, config
        self.parameters: list[torch.Tensor] = [
            parameter for parameter in network.parameters() if parameter.requires_grad
        ]
        self.average = WeightAverage(self.parameters, config.ema_decay)
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate, betas=config.betas, fused=True)

    def begin(self, ratio: float) -> None:
        """Of a step, at a share of the peak rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = ratio * self.peak_rate
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def rate(self) -> float:
        """Learning rate of this step."""
        return self.optimizer.param_groups[0]["lr"]

    def clip(self) -> float:
        """Clip the gradient; returns its norm before."""
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_grad))

    def state_dict(self) -> dict[str, Any]:
        """Network, average and optimizer."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.network.load_state_dict(state["network"])
        self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


class AdversarialState:
    """All that a resumed run needs."""

    def __init__(
        self,
        generator: torch.nn.Module,
        discriminators: torch.nn.Module,
        config: AdversarialFitConfig,
        path: Path,
        replicas: platform.Replicas,
    ) -> None:
        self.config, self.path, self.replicas, self.step = config, path, replicas, 0
        self.generator = Half(generator, config.generator_rate, config)
        self.discriminators = Half(discriminators, config.discriminator_rate, config)
        self.divergence, self.collapse = DivergenceGuard(config.divergence), CollapseGuard(config.collapse)

    @property
    def parts(self) -> dict[str, Any]:
        """What has a state, by its name in the checkpoint."""
        return {name: vars(self)[name] for name in ("generator", "discriminators", "divergence", "collapse")}

    def save(self) -> None:
        """Write the checkpoint, in the first process."""
        if not self.replicas.is_first:
            return
        save_whole({"step": self.step} | {name: part.state_dict() for name, part in self.parts.items()}, self.path)

    def load(self) -> None:
        """Read the checkpoint, if there is one."""
        if not self.path.exists():
            return
        content = torch.load(self.path, map_location=platform.device(), weights_only=True)
        self.step = content["step"]
        for name, part in self.parts.items():
            part.load_state_dict(content[name])
