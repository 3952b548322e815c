"""The loop of tokenizers and vocoder: several processes do what one does, also after a resume."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_aqaa.tokenizer.quantizers import VectorQuantizer, VqEmaConfig
from megatron_aqaa.training.speech_models.fit import FitConfig, fit
from tests.distributed.launch import run

pytestmark = pytest.mark.distributed

CONFIG = FitConfig(steps=8, warmup_steps=2, ema_decay=0.9, checkpoint_interval=3, log_interval=1, num_shares=2)


class Network(torch.nn.Module):
    """With dropout, and a layer that only every other share uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.dropout = torch.nn.Linear(4, 8), torch.nn.Dropout(0.3)
        self.last, self.rare = torch.nn.Linear(8, 1), torch.nn.Linear(8, 1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(self.first(batch))
        return self.rare(hidden) if batch[0, 0] > 0 else self.last(hidden)


def batch_at(number: int) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(number))


def doubled_batch_at(step: int) -> torch.Tensor:
    return torch.cat((batch_at(2 * step), batch_at(2 * step + 1)))


def losses(model: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    error = model(batch).squeeze(1) - batch.sum(1)
    return {"loss": error.square().mean(), "mean": error.mean()}


def trained(directory: Path, config: FitConfig, stop_at: int | None = None) -> list[torch.Tensor]:
    model = Network()

    def maybe_stopping(number: int) -> torch.Tensor:
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)  # one process only: the others must learn of it
        return batch_at(number)

    try:
        fit(model, maybe_stopping, losses, config, directory, "test")
    except KeyboardInterrupt as stopped:
        assert "stopped at step 5" in str(stopped)  # noqa: PT017
        return []
    return [parameter.detach() for parameter in model.parameters()]


def plain(directory: Path) -> list[torch.Tensor]:
    """One process, the doubled batch as one batch, and neither dropout nor the rare layer."""
    model = torch.nn.Linear(4, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    single = "WORLD_SIZE" not in os.environ
    config = replace(CONFIG, num_shares=1 if single else 2, autocast=False)
    fit(model, doubled_batch_at if single else batch_at, losses, config, directory, "test")
    return [parameter.detach() for parameter in model.parameters()]


class Quantizing(torch.nn.Module):
    """With a codebook that no gradient moves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
        self.quantizer = VectorQuantizer(8, VqEmaConfig(num_codes=16, code_size=3, decay=0.8))

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        quantized = self.quantizer(self.first(batch)[None], torch.ones(1, len(batch), dtype=torch.bool))
        return self.last(quantized.embedded[0]), quantized.loss


def quantizing_losses(model: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    rebuilt, committed = model(batch)
    return {"loss": (rebuilt - batch).square().mean() + committed}


def quantizing(directory: Path, config: FitConfig) -> dict[str, torch.Tensor]:
    model = Quantizing()
    fit(model, batch_at, quantizing_losses, config, directory, "test")
    return model.state_dict()


def test_codebooks_of_two_processes_equal_that_of_one(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=10, autocast=False)
    alone = quantizing(tmp_path / "one", config)
    assert alone["quantizer.updates"] == 10 and not alone["quantizer.codebook"].equal(Quantizing().quantizer.codebook)
    for together in run(quantizing, 2, tmp_path / "two", config):
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-5, atol=1e-6)


def test_a_resumed_codebook_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    straight = quantizing(tmp_path / "straight", replace(CONFIG, steps=9))

    def stopping_at_5(number: int) -> torch.Tensor:
        if number == 10:  # two shares a step
            raise RuntimeError("killed")
        return batch_at(number)

    with pytest.raises(RuntimeError, match="killed"):
        fit(Quantizing(), stopping_at_5, quantizing_losses, replace(CONFIG, steps=9), tmp_path / "killed", "test")
    for name, value in quantizing(tmp_path / "killed", replace(CONFIG, steps=9)).items():
        assert torch.equal(straight[name], value), name


def test_two_processes_equal_one(tmp_path: Path) -> None:
    alone = trained(tmp_path / "one", CONFIG)
    for together in run(trained, 2, tmp_path / "two", CONFIG):
        for one, two in zip(alone, together, strict=True):
            assert torch.equal(one, two)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("one", "two")]
    assert logs[0] == logs[1]


def test_two_processes_equal_the_doubled_batch(tmp_path: Path) -> None:
    alone, together = plain(tmp_path / "one"), run(plain, 2, tmp_path / "two")[1]
    for one, two in zip(alone, together, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_stop_of_one_process_stops_all_and_resumes_exactly(tmp_path: Path) -> None:
    straight = trained(tmp_path / "straight", CONFIG)
    assert run(trained, 2, tmp_path / "stopped", CONFIG, 9) == [[], []]
    for one, two in zip(straight, run(trained, 2, tmp_path / "stopped", CONFIG)[0], strict=True):
        assert torch.equal(one, two)


def test_shares_that_cannot_be_dealt_out(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="num_shares = 3 must be a multiple of the 2 processes"):
        run(trained, 2, tmp_path, replace(CONFIG, num_shares=3))
