"""The one-process loop: resume is the uninterrupted run to the last bit."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_aqaa.training.speech_models.fit import FitConfig, fit

CONFIG = FitConfig(steps=12, warmup_steps=2, ema_decay=0.9, checkpoint_interval=4, log_interval=1, autocast=False)


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))


def batch_at(step: int) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(step))


def loss_function(model: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    error = model(batch).squeeze(1) - batch.sum(1)
    return {"loss": error.square().mean(), "mean": error.mean()}


def run(directory: Path, stop_at: int | None = None) -> list[torch.Tensor]:
    model = network()

    def interrupting_batch(step: int) -> torch.Tensor:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return batch_at(step)

    fit(model, interrupting_batch, loss_function, CONFIG, directory, "test")
    return [p.detach().clone() for p in model.parameters()]


def test_resume_is_exact(tmp_path: Path) -> None:
    straight = run(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt, match="stopped at step 6, saved"):
        run(tmp_path / "resumed", stop_at=5)
    resumed = run(tmp_path / "resumed")
    for a, b in zip(straight, resumed, strict=True):
        assert torch.equal(a, b)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("straight", "resumed")]
    assert [json.loads(line) for line in logs[0]] == [json.loads(line) for line in logs[1]]


def test_exported_weights_are_the_average(tmp_path: Path) -> None:
    averaged = run(tmp_path / "a")
    last = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["model"].values()
    assert any(not torch.equal(a, b) for a, b in zip(averaged, last, strict=True))


def test_rate_warms_up_and_decays() -> None:
    config = FitConfig(steps=100, learning_rate=1.0, warmup_steps=10, decay_ratio=0.5, min_rate_ratio=0.1)
    assert config.rate(0) == pytest.approx(0.1)
    assert config.rate(20) == 1.0
    assert config.rate(75) == pytest.approx(0.5)
    assert config.rate(99) == pytest.approx(0.1)


def test_nan_stops_with_the_step(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="step 0"):
        fit(network(), batch_at, lambda m, b: {"loss": m(b).sum() * float("nan")}, CONFIG, tmp_path, "test")


def test_validation_sees_the_average_and_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    seen = []

    def validation(model: torch.nn.Module, step: int) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        torch.manual_seed(0)  # what it draws is its own affair
        seen.append([p.detach().clone() for p in model.parameters()])
        return {"held_out": float(step)}

    model, config = network(), replace(CONFIG, validation_interval=5)
    fit(model, batch_at, loss_function, config, tmp_path / "a", "test", validation)
    exported = [p.detach() for p in model.parameters()]
    for one, two, last in zip(exported, run(tmp_path / "b"), seen[-1], strict=True):
        assert torch.equal(one, two) and torch.equal(one, last)
    records = map(json.loads, (tmp_path / "a" / "log.jsonl").read_text().splitlines())
    assert [record["held_out"] for record in records if "held_out" in record] == [5.0, 10.0, 12.0]
