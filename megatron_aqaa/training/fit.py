"""The one-process training loop of the tokenizers and the vocoder.

Batches and noise are functions of (seed, step), so a resumed run is the uninterrupted run to the last bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa import platform
from megatron_aqaa.training.progress import Progress
from megatron_aqaa.training.stop import StopRequest

LossFunction = Callable[[Any, Any], Mapping[str, torch.Tensor]]
"""(model, batch) → losses by name; "loss" is minimised, the others are logged."""


@dataclass(frozen=True)
class FitConfig:
    """Schedule and optimizer of one network.

    Attributes:
        steps: optimizer steps in all.
        learning_rate: peak of the schedule: linear warm-up, flat, linear decay.
        warmup_steps: steps of the warm-up.
        decay_ratio: share of the steps, at the end, over which the rate falls to `min_rate_ratio` of the peak.
        ema_decay: the exported weights are an exponential moving average; 0 exports the last ones.
        num_threads: CPU threads of this process.
        autocast: bf16 autocast for the forward pass.
    """

    steps: int
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    decay_ratio: float = 0.75
    min_rate_ratio: float = 0.02
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_grad: float = 1.0
    ema_decay: float = 0.0
    seed: int = 0
    num_threads: int = 1
    autocast: bool = True
    checkpoint_interval: int = 500
    log_interval: int = 20

    def rate(self, step: int) -> float:
        """Learning rate of step 0 … steps − 1."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay_steps = max(1.0, self.decay_ratio * self.steps)
        return self.learning_rate * warmup * max(self.min_rate_ratio, min(1.0, (self.steps - step) / decay_steps))


def fit(
    model: torch.nn.Module,
    batch_at: Callable[[int], Any],
    loss_function: LossFunction,
    config: FitConfig,
    directory: Path,
    title: str,
) -> None:
    """Train `model` in place; on return it holds the averaged weights.

    Args:
        model: trained in place.
        batch_at: step → batch, a pure function of the step.
        loss_function: see `LossFunction`.
        config: schedule and optimizer.
        directory: receives `checkpoint.pt` (resume) and `log.jsonl`.
        title: name in the progress display.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
        KeyboardInterrupt: after ctrl-C or SIGTERM, once the state is saved.
    """
    directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.num_threads)
    platform.keep_freed_memory()
    state = _FitState(model, config, directory / "checkpoint.pt")
    state.load()
    model.train()
    with StopRequest() as stop, Progress(title, config.steps, state.step, directory / "log.jsonl") as progress:
        while state.step < config.steps:
            values = _train_step(state, batch_at(state.step), loss_function)
            progress.update(state.step, **values)
            if state.step % config.log_interval == 0 or state.step == config.steps:
                progress.log({"step": state.step, "rate": config.rate(state.step - 1), **values})
            if stop.requested or state.step % config.checkpoint_interval == 0 or state.step == config.steps:
                state.save()
            if stop.requested:
                raise KeyboardInterrupt(f"{title}: stopped at step {state.step}, saved; run again to continue")
    state.use_average()
    model.eval()


class _FitState:
    """Model, average, optimizer and step: all that a resumed run needs."""

    def __init__(self, model: torch.nn.Module, config: FitConfig, path: Path) -> None:
        self.model, self.config, self.path, self.step = model, config, path, 0
        self.parameters: list[torch.Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        decay = [p for p in self.parameters if p.dim() > 1]
        no_decay = [p for p in self.parameters if p.dim() <= 1]
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)

    def save(self) -> None:
        content = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.path.with_suffix(".partial")
        torch.save(content, partial)
        os.replace(partial, self.path)  # a killed save leaves the previous file whole

    def load(self) -> None:
        if not self.path.exists():
            return
        content = torch.load(self.path, weights_only=True)
        self.step = content["step"]
        self.model.load_state_dict(content["model"])
        self.average = content["average"]
        self.optimizer.load_state_dict(content["optimizer"])

    @torch.no_grad()
    def update_average(self) -> None:
        """Follow the weights; a plain mean at first, so that the start is soon forgotten."""
        weight = max(1.0 - self.config.ema_decay, 1.0 / (self.step + 1))
        torch._foreach_lerp_(self.average, self.parameters, weight)

    @torch.no_grad()
    def use_average(self) -> None:
        if self.config.ema_decay:
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)


def _train_step(state: _FitState, batch: Any, loss_function: LossFunction) -> dict[str, float]:
    config = state.config
    torch.manual_seed(config.seed * 1_000_003 + state.step)  # noise and dropout depend on the step alone
    for group in state.optimizer.param_groups:
        group["lr"] = config.rate(state.step)
    device_type = state.parameters[0].device.type
    with torch.autocast(device_type, torch.bfloat16, enabled=config.autocast):
        losses = loss_function(state.model, batch)
    values = {name: float(value.detach()) for name, value in losses.items()}
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(
            f"loss {values['loss']} at step {state.step}: lower the learning rate or check the data"
        )
    state.optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    torch.nn.utils.clip_grad_norm_(state.parameters, config.clip_grad)
    state.optimizer.step()
    state.step += 1
    if config.ema_decay:
        state.update_average()
    return values
