"""The training loop of the tokenizers and the vocoder, for one process or several with the whole network each.

Batches and noise are functions of (seed, step, share), so a resumed run is the uninterrupted run to the last bit, and
several processes do what one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from megatron_aqaa import platform
from megatron_aqaa.network_file import save_whole
from megatron_aqaa.training.progress import Progress
from megatron_aqaa.training.speech_models.divergence import DivergenceConfig, DivergenceGuard
from megatron_aqaa.training.speech_models.shares import gradients, join_for_shares, on_device, seed_share
from megatron_aqaa.training.speech_models.weight_average import WeightAverage
from megatron_aqaa.training.stop import StopRequest

LossFunction = Callable[[Any, Any], Mapping[str, torch.Tensor]]
"""(model, batch) → losses by name; "loss" is minimised, the others are logged."""

Validation = Callable[[Any, int], Mapping[str, float]]
"""(model as it would be exported, step) → what to log; called in the first process alone, without gradients."""


@runtime_checkable
class MovedByStep(Protocol):
    """A part of a network that no gradient moves, such as a codebook of running means."""

    def after_step(self, sum_: Callable[[Sequence[torch.Tensor]], None]) -> None:
        """Called once a step, after all its batches; `sum_` puts the sum over the processes in place of tensors."""


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
        num_shares: batches that make a step, each with noise of its own; processes share them out, one does them one
            after the other. So `num_shares` processes equal one process with a batch as many times as large.
        divergence: when training is given up.
        validation_interval: steps between validations; 0 for none.
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
    num_shares: int = 1
    divergence: DivergenceConfig = DivergenceConfig()
    checkpoint_interval: int = 500
    log_interval: int = 20
    validation_interval: int = 0

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
    validation: Validation | None = None,
) -> None:
    """Train `model` in place; on return it holds the averaged weights, on the CPU, on every process.

    Args:
        model: trained in place, on this process's device.
        batch_at: number → batch, a pure function; step s takes the numbers s · num_shares … (s + 1) · num_shares − 1.
        loss_function: see `LossFunction`.
        config: schedule and optimizer.
        directory: receives `checkpoint.pt` (resume) and `log.jsonl`.
        title: name in the progress display.
        validation: see `Validation`; every `config.validation_interval` steps and after the last one.

    Raises:
        ValueError: the shares of a step cannot be dealt out evenly.
        FloatingPointError: the loss is NaN or infinite, or has diverged.
        KeyboardInterrupt: after ctrl-C or SIGTERM, once the state is saved.
    """
    replicas = join_for_shares(config.num_shares)
    directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.num_threads)
    platform.keep_freed_memory()
    state = _FitState(model.to(platform.device()), config, directory / "checkpoint.pt", replicas)
    state.load()
    model.train()
    with StopRequest() as stop, _progress(title, state, directory) as progress:
        while state.step < config.steps:
            values, stopping = _train_step(state, batch_at, loss_function, stop)
            progress.update(state.step, **values)
            if state.step % config.log_interval == 0 or state.step == config.steps:
                progress.log({"step": state.step, "rate": config.rate(state.step - 1), **values})
            if validation and state.is_validated():
                progress.log({"step": state.step, **state.validated(validation)})
            if stopping or state.step % config.checkpoint_interval == 0 or state.step == config.steps:
                state.save()
            if stopping:
                raise KeyboardInterrupt(f"{title}: stopped at step {state.step}, saved; run again to continue")
    state.average.use()
    model.cpu().eval()


def _progress(title: str, state: _FitState, directory: Path) -> Progress:
    first = state.replicas.is_first
    return Progress(title, state.config.steps, state.step, directory / "log.jsonl" if first else None, silent=not first)


class _FitState:
    """Model, average, optimizer and step: all that a resumed run needs."""

    def __init__(self, model: torch.nn.Module, config: FitConfig, path: Path, replicas: platform.Replicas) -> None:
        self.model, self.config, self.path, self.step = model, config, path, 0
        self.replicas, self.guard = replicas, DivergenceGuard(config.divergence)
        self.parameters: list[torch.Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.average = WeightAverage(self.parameters, config.ema_decay)
        decay = [p for p in self.parameters if p.dim() > 1]
        no_decay = [p for p in self.parameters if p.dim() <= 1]
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)

    def save(self) -> None:
        if not self.replicas.is_first:
            return
        content = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
        }
        save_whole(content, self.path)

    def load(self) -> None:
        if not self.path.exists():
            return
        content = torch.load(self.path, map_location=platform.device(), weights_only=True)
        self.step = content["step"]
        self.model.load_state_dict(content["model"])
        self.average.load(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.guard.load_state_dict(content.get("guard", {}))  # older checkpoints have none

    def is_validated(self) -> bool:
        """Whether this process validates after this step."""
        interval, step = self.config.validation_interval, self.step
        return self.replicas.is_first and interval > 0 and (step % interval == 0 or step == self.config.steps)

    @torch.no_grad()
    def validated(self, validation: Validation) -> Mapping[str, float]:
        """What a validation finds with averaged weights in evaluation mode; training goes on with its own weights."""
        with self.average.in_use(self.model) as model:
            return validation(model, self.step)


def _train_step(
    state: _FitState, batch_at: Callable[[int], Any], loss_function: LossFunction, stop: StopRequest
) -> tuple[dict[str, float], bool]:
    """One step; returns the losses, and whether any process was asked to stop."""
    config, replicas = state.config, state.replicas
    rate = config.rate(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, torch.Tensor] = {}
    for share in range(replicas.rank, config.num_shares, replicas.size):
        for name, value in _accumulate(state, batch_at, loss_function, share).items():
            sums[name] = sums[name] + value if name in sums else value
    noted = torch.stack([value.float() for value in sums.values()])
    stopping = noted.new_tensor([float(stop.requested)])
    replicas.sum_([noted, stopping, *gradients(state.parameters, config.num_shares)])
    values = dict(zip(sums, noted.tolist(), strict=True))
    norm = torch.nn.utils.clip_grad_norm_(state.parameters, config.clip_grad)
    state.guard.check(state.step, values["loss"], float(norm), rate)
    state.optimizer.step()
    for part in state.model.modules():
        if isinstance(part, MovedByStep):
            part.after_step(replicas.sum_)
    state.step += 1
    state.average.update(state.step)
    return values, bool(stopping)


def _accumulate(
    state: _FitState, batch_at: Callable[[int], Any], loss_function: LossFunction, share: int
) -> dict[str, torch.Tensor]:
    """Add a share's gradients; returns its part of the losses."""
    config = state.config
    seed_share(config.seed, state.step, share)
    batch = on_device(batch_at(state.step * config.num_shares + share))
    with torch.autocast(platform.device().type, torch.bfloat16, enabled=config.autocast):
        losses = loss_function(state.model, batch)
    (losses["loss"] / config.num_shares).backward()
    return {name: value.detach() / config.num_shares for name, value in losses.items()}
