"""The loop of two networks: resume is the uninterrupted run to the last bit, and collapse is diagnosed."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_aqaa.training.speech_models.adversarial_fit import Adversary, fit_adversarially
from megatron_aqaa.training.speech_models.adversarial_state import AdversarialFitConfig
from megatron_aqaa.training.speech_models.discriminator_collapse import CollapseConfig
from tests.training.speech_models.tiny_adversaries import CONFIG, NOISY, batch_at, convince, judge, networks


def run(directory: Path, config: AdversarialFitConfig = CONFIG, stop_at: int | None = None) -> list[torch.Tensor]:
    generator, discriminator = networks()

    def interrupting(step: int) -> torch.Tensor:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return batch_at(step)

    fit_adversarially(generator, discriminator, interrupting, NOISY, config, directory, "test")
    return [p.detach().clone() for network in (generator, discriminator) for p in network.parameters()]


def log_of(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def test_resume_is_exact(tmp_path: Path) -> None:
    """Stopped after four steps: the checkpoint of step 4, then steps 5 to 8, weights and logs alike."""
    straight = run(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt, match="stopped at step 4, saved"):
        run(tmp_path / "resumed", stop_at=3)
    for one, two in zip(straight, run(tmp_path / "resumed"), strict=True):
        assert torch.equal(one, two)
    assert log_of(tmp_path / "straight") == log_of(tmp_path / "resumed")


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """Two steps after the checkpoint of step 3 are made again, and are the same."""
    straight = run(tmp_path / "straight")

    def failing(step: int) -> torch.Tensor:
        if step == 5:
            raise RuntimeError("killed")
        return batch_at(step)

    with pytest.raises(RuntimeError, match="killed"):
        fit_adversarially(*networks(), failing, NOISY, CONFIG, tmp_path / "killed", "test")
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] == 3
    for one, two in zip(straight, run(tmp_path / "killed"), strict=True):
        assert torch.equal(one, two)


def test_both_learn(tmp_path: Path) -> None:
    run(tmp_path, replace(CONFIG, steps=150, warmup_steps=0))
    log = log_of(tmp_path)
    assert log[-1]["distance"] < 0.5 * log[0]["distance"]
    assert log[-1].keys() == {
        *("step", "rate_ratio", "loss", "distance"),
        *("discriminator_loss", "discriminator_judging", "discriminator_spread"),
    }


def test_the_generator_exported_is_the_average(tmp_path: Path) -> None:
    averaged = run(tmp_path / "a")[:4]
    last = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["generator"]["network"].values()
    assert any(not torch.equal(a, b) for a, b in zip(averaged, last, strict=True))
    plain = run(tmp_path / "b", replace(CONFIG, ema_decay=0.0))[:4]
    last = torch.load(tmp_path / "b" / "checkpoint.pt", weights_only=True)["generator"]["network"].values()
    assert all(torch.equal(a, b) for a, b in zip(plain, last, strict=True))


def test_rates() -> None:
    config = AdversarialFitConfig(steps=100, warmup_steps=10, decay_ratio=0.5)
    assert config.rate_ratio(0) == pytest.approx(0.1)
    assert config.rate_ratio(20) == 1.0
    assert config.rate_ratio(75) == pytest.approx(0.5)
    assert AdversarialFitConfig(steps=100).rate_ratio(99) == 1.0


def test_validation_sees_the_average_and_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    seen = []

    def validation(generator: torch.nn.Module, step: int) -> dict[str, float]:
        assert not generator.training
        torch.manual_seed(0)  # what it draws is its own affair
        seen.append([p.detach().clone() for p in generator.parameters()])
        return {"held_out": float(step)}

    generator, discriminator = networks()
    config = replace(CONFIG, validation_interval=3)
    fit_adversarially(generator, discriminator, batch_at, NOISY, config, tmp_path / "a", "test", validation)
    undisturbed = run(tmp_path / "b")
    for one, two in zip([*generator.parameters(), *discriminator.parameters()], undisturbed, strict=True):
        assert torch.equal(one, two)
    assert [record["held_out"] for record in log_of(tmp_path / "a") if "held_out" in record] == [3.0, 6.0, 8.0]
    for one, two in zip(seen[-1], generator.parameters(), strict=True):
        assert torch.equal(one, two)


def deaf(discriminator: torch.nn.Module, batch: torch.Tensor, made: torch.Tensor) -> dict[str, torch.Tensor]:
    """A discriminator that says the same of everything."""
    return judge(lambda x: 0 * discriminator(x) + 0.5, batch, made)


def test_a_deaf_discriminator_stops_the_run(tmp_path: Path) -> None:
    adversary = Adversary(NOISY.generate, deaf, convince)
    config = replace(CONFIG, steps=50, collapse=CollapseConfig(patience=5))
    with pytest.raises(FloatingPointError, match="for 5 steps up to step 4 they scored everything alike"):
        fit_adversarially(*networks(), batch_at, adversary, config, tmp_path, "test")


def test_a_discriminator_that_cannot_be_deceived_stops_the_run(tmp_path: Path) -> None:
    """What is generated is a hundred times too loud, and stays so: the generator has no rate."""
    loud = Adversary(lambda generator, batch: 100 + NOISY.generate(generator, batch), judge, convince)
    collapse = CollapseConfig(patience=5, smoothing=0.0)
    config = replace(CONFIG, steps=300, generator_rate=0.0, warmup_steps=0, collapse=collapse)
    with pytest.raises(FloatingPointError, match="discriminators won: for 5 steps up to step"):
        fit_adversarially(*networks(), batch_at, loud, config, tmp_path, "test")


@pytest.mark.parametrize("who", ["discriminators", "generator"])
def test_nan_stops_with_the_step(tmp_path: Path, who: str) -> None:
    def spoiled(losses):
        return lambda *arguments: {k: v * float("nan") for k, v in losses(*arguments).items()}

    parts = {"discriminators": (spoiled(judge), convince), "generator": (judge, spoiled(convince))}[who]
    with pytest.raises(
        FloatingPointError, match=r"loss nan .*at step 0" if who == "generator" else "discriminators: loss nan"
    ):
        fit_adversarially(*networks(), batch_at, Adversary(NOISY.generate, *parts), CONFIG, tmp_path, "test")


@pytest.mark.parametrize(
    ("settings", "message"), [({"steps": 0}, "must be at least 1"), ({"ema_decay": 1.0}, "ema_decay = 1.0")]
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **settings)
