"""The loop of generator and discriminators: several processes do what one does, also after a resume."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_aqaa.audio.mel import MelSpectrogram
from megatron_aqaa.training.speech_models.adversarial_fit import Adversary, fit_adversarially
from megatron_aqaa.training.speech_models.hift_steps import hift_adversary
from megatron_aqaa.training.speech_models.speech_batches import SoundAnalysis, SoundBatch
from megatron_aqaa.vocoder.adversarial_losses import AdversarialWeights
from megatron_aqaa.vocoder.discriminators import DiscriminatorConfig, Discriminators, Resolution
from tests.distributed.launch import run
from tests.training.speech_models.tiny_adversaries import CONFIG, NOISY, PLAIN, batch_at, networks
from tests.vocoder.cosyvoice.tiny_hift import CONFIG as HIFT
from tests.vocoder.cosyvoice.tiny_hift import hum, tiny_hift

pytestmark = pytest.mark.distributed

SHARED = replace(CONFIG, num_shares=2)
JUDGES = DiscriminatorConfig(
    periods=(2,), period_channels=(4, 4), resolutions=(Resolution(512, 50, 240),), spectrum_channels=4
)


def doubled_batch_at(step: int) -> torch.Tensor:
    return torch.cat((batch_at(2 * step), batch_at(2 * step + 1)))


def trained(directory: Path, stop_at: int | None = None, adversary: Adversary = NOISY) -> list[torch.Tensor]:
    generator, discriminator = networks()

    def maybe_stopping(number: int) -> torch.Tensor:
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)  # one process only: the others must learn of it
        return batch_at(number)

    try:
        fit_adversarially(generator, discriminator, maybe_stopping, adversary, SHARED, directory, "test")
    except KeyboardInterrupt as stopped:
        assert "stopped at step 5" in str(stopped)  # noqa: PT017
        return []
    return [p.detach() for network in (generator, discriminator) for p in network.parameters()]


def plain(directory: Path) -> list[torch.Tensor]:
    """Two shares without noise; in one process the doubled batch as one batch."""
    generator, discriminator = networks()
    single = "WORLD_SIZE" not in os.environ
    batches, config = (doubled_batch_at, CONFIG) if single else (batch_at, SHARED)
    fit_adversarially(generator, discriminator, batches, PLAIN, config, directory, "test")
    return [p.detach() for network in (generator, discriminator) for p in network.parameters()]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    alone = trained(tmp_path / "one")
    for together in run(trained, 2, tmp_path / "two"):
        for one, two in zip(alone, together, strict=True):
            assert torch.equal(one, two)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("one", "two")]
    assert logs[0] == logs[1]


def test_two_processes_equal_the_doubled_batch(tmp_path: Path) -> None:
    alone, together = plain(tmp_path / "one"), run(plain, 2, tmp_path / "two")[1]
    for one, two in zip(alone, together, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_stop_of_one_process_stops_all_and_resumes_exactly(tmp_path: Path) -> None:
    straight = trained(tmp_path / "straight")
    assert run(trained, 2, tmp_path / "stopped", 9) == [[], []]
    for one, two in zip(straight, run(trained, 2, tmp_path / "stopped")[0], strict=True):
        assert torch.equal(one, two)


def hummed(number: int) -> SoundBatch:
    return SoundAnalysis(HIFT.mel)(hum(4096, 120.0 + 10 * number))


def hift_trained(directory: Path) -> list[torch.Tensor]:
    generator, judges = tiny_hift(), Discriminators(JUDGES)
    adversary = hift_adversary(AdversarialWeights(), [MelSpectrogram(HIFT.mel)])
    fit_adversarially(generator, judges, hummed, adversary, replace(SHARED, steps=2), directory, "test")
    return [p.detach() for network in (generator, judges) for p in network.parameters()]


def test_two_processes_train_hift_as_one_does(tmp_path: Path) -> None:
    """Its noise is drawn for each share."""
    alone = hift_trained(tmp_path / "one")
    for together in run(hift_trained, 2, tmp_path / "two"):
        for one, two in zip(alone, together, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
