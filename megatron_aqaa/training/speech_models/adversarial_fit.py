"""The training loop of a generator against discriminators: two networks, two optimizers, a turn of each in a step.

On the footing of `fit`: batches and noise are functions of (seed, step, share), so a resumed run is the uninterrupted
run to the last bit, and several processes do what one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa import platform
from megatron_aqaa.training.progress import Progress
from megatron_aqaa.training.speech_models.adversarial_state import AdversarialFitConfig, AdversarialState, Half
from megatron_aqaa.training.speech_models.fit import Validation
from megatron_aqaa.training.speech_models.shares import gradients, join_for_shares, on_device, seed_share
from megatron_aqaa.training.stop import StopRequest

Losses = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Adversary:
    """What a step does.

    Attributes:
        generate: (generator, batch) → what it made, any (named) tuple of tensors.
        judge: (discriminators, batch, what was made, without its gradient) → losses: "loss" is minimised by the
            discriminators; "judging", how badly they tell, and "spread" of their scores go to the collapse guard.
        convince: (discriminators, batch, what was made) → losses: "loss" is minimised by the generator.
    """

    generate: Callable[[Any, Any], Any]
    judge: Callable[[Any, Any, Any], Losses]
    convince: Callable[[Any, Any, Any], Losses]


def fit_adversarially(
    generator: torch.nn.Module,
    discriminators: torch.nn.Module,
    batch_at: Callable[[int], Any],
    adversary: Adversary,
    config: AdversarialFitConfig,
    directory: Path,
    title: str,
    validation: Validation | None = None,
) -> None:
    """Train both in place; on return `generator` holds the averaged weights, on the CPU, on every process.

    Args:
        generator: trained in place, on this process's device.
        discriminators: the same.
        batch_at: number → batch, a pure function; as in `fit`.
        adversary: see `Adversary`.
        config: schedule and optimizers.
        directory: receives `checkpoint.pt` (resume) and `log.jsonl`.
        title: name in the progress display.
        validation: see `Validation`.

    Raises:
        ValueError: the shares of a step cannot be dealt out evenly.
        FloatingPointError: a loss is NaN or infinite or has diverged, or the discriminators have collapsed.
        KeyboardInterrupt: after ctrl-C or SIGTERM, once the state is saved.
    """
    replicas = join_for_shares(config.num_shares)
    directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.num_threads)
    platform.keep_freed_memory()
    state = AdversarialState(generator, discriminators, config, directory / "checkpoint.pt", replicas)
    state.load()
    with StopRequest() as stop, _progress(title, state, directory) as progress:
        while state.step < config.steps:
            values, stopping = _train_step(state, batch_at, adversary, stop)
            _report(state, values, progress, validation)
            if stopping or state.step % config.checkpoint_interval == 0 or state.step == config.steps:
                state.save()
            if stopping:
                raise KeyboardInterrupt(f"{title}: stopped at step {state.step}, saved; run again to continue")
    state.generator.average.use()
    generator.cpu().eval()
    discriminators.cpu().eval()


def _progress(title: str, state: AdversarialState, directory: Path) -> Progress:
    first = state.replicas.is_first
    return Progress(title, state.config.steps, state.step, directory / "log.jsonl" if first else None, silent=not first)


def _report(
    state: AdversarialState, values: dict[str, float], progress: Progress, validation: Validation | None
) -> None:
    """Display and log a step; validate where it is time to."""
    config = state.config
    progress.update(state.step, **values)
    if state.step % config.log_interval == 0 or state.step == config.steps:
        progress.log({"step": state.step, "rate_ratio": config.rate_ratio(state.step - 1), **values})
    interval = config.validation_interval
    if (
        validation
        and interval
        and state.replicas.is_first
        and (state.step % interval == 0 or state.step == config.steps)
    ):
        with state.generator.average.in_use(state.generator.network) as generator, torch.no_grad():
            progress.log({"step": state.step, **validation(generator, state.step)})


def _train_step(
    state: AdversarialState, batch_at: Callable[[int], Any], adversary: Adversary, stop: StopRequest
) -> tuple[dict[str, float], bool]:
    """Discriminators, then generator; returns the losses, and whether any process was asked to stop."""
    config, generator, discriminators = state.config, state.generator, state.discriminators
    made = {}
    for share in range(state.replicas.rank, config.num_shares, state.replicas.size):
        seed_share(config.seed, state.step, share)
        batch = on_device(batch_at(state.step * config.num_shares + share))
        with _autocast(config):
            made[share] = _Made(batch, adversary.generate(generator.network, batch))

    told = _turn(state, discriminators, made, lambda n, m: adversary.judge(n, m.batch, _without_gradient(m.result)))
    norm = discriminators.clip()
    if not math.isfinite(told["loss"]) or not math.isfinite(norm):
        raise FloatingPointError(
            f"discriminators: loss {told['loss']} and gradient norm {norm} at step {state.step}: lower their learning "
            f"rate, or train without autocast"
        )
    state.collapse.check(state.step, told["judging"], told["spread"])
    discriminators.optimizer.step()

    discriminators.network.requires_grad_(False)  # they only pass the generator's gradient on
    values = _turn(state, generator, made, lambda n, m: adversary.convince(discriminators.network, m.batch, m.result))
    discriminators.network.requires_grad_(True)
    state.divergence.check(state.step, values["loss"], generator.clip(), generator.rate)
    generator.optimizer.step()
    state.step += 1
    generator.average.update(state.step)
    stopping = torch.tensor([float(stop.requested)], device=platform.device())
    state.replicas.sum_([stopping])
    return values | {f"discriminator_{name}": value for name, value in told.items()}, bool(stopping)


@dataclass(frozen=True)
class _Made:
    """A share's batch and what the generator made of it."""

    batch: Any
    result: Any


def _turn(
    state: AdversarialState, half: Half, made: Mapping[int, _Made], losses_of: Callable[[Any, _Made], Losses]
) -> dict[str, float]:
    """Gradients of one network over all shares of all processes; returns the mean losses."""
    half.begin(state.config.rate_ratio(state.step))
    sums: dict[str, torch.Tensor] = {}
    for share, one in made.items():
        seed_share(state.config.seed, state.step, share)
        with _autocast(state.config):
            losses = losses_of(half.network, one)
        (losses["loss"] / state.config.num_shares).backward()
        for name, value in losses.items():
            part = value.detach().float() / state.config.num_shares
            sums[name] = sums[name] + part if name in sums else part
    noted = torch.stack(list(sums.values()))
    state.replicas.sum_([noted, *gradients(half.parameters, state.config.num_shares)])
    return dict(zip(sums, noted.tolist(), strict=True))


def _autocast(config: AdversarialFitConfig) -> torch.autocast:
    return torch.autocast(platform.device().type, torch.bfloat16, enabled=config.autocast)


def _without_gradient(made: Any) -> Any:
    """Tensors in (named) tuples, cut off from what made them."""
    if isinstance(made, torch.Tensor):
        return made.detach()
    parts = [_without_gradient(part) for part in made]
    return type(made)(*parts) if hasattr(made, "_fields") else tuple(parts)
