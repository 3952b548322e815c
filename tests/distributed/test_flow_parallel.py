"""The full-size flow model in two processes: what one process does, with two shares or with the doubled batch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from megatron_aqaa.training.speech_models.fit import FitConfig, fit
from megatron_aqaa.vocoder import flow
from megatron_aqaa.vocoder.cosyvoice.flow_loss import FlowBatch, flow_losses, masked_mean
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowModel, TokenBatch
from tests.distributed.launch import run
from tests.vocoder.cosyvoice.tiny_flow import CONFIG as TINY
from tests.vocoder.cosyvoice.tiny_flow import recordings, tiny_flow

pytestmark = pytest.mark.distributed

CONFIG = FitConfig(steps=4, warmup_steps=2, ema_decay=0.9, log_interval=1, num_shares=2, autocast=False)


class Drawn(NamedTuple):
    """A batch with its noise and times, so that they do not depend on how it is dealt out."""

    tokens: torch.Tensor
    mel: torch.Tensor
    noise: torch.Tensor
    time: torch.Tensor


def drawn_at(number: int) -> Drawn:
    batch, source = recordings(2, 20, seed=number), torch.Generator().manual_seed(number)
    noise = torch.randn(batch.mel.shape, generator=source)
    return Drawn(batch.tokens.tokens, batch.mel.double(), noise.double(), torch.rand(2, generator=source).double())


def doubled_at(step: int) -> Drawn:
    return Drawn(*(torch.cat(parts) for parts in zip(drawn_at(2 * step), drawn_at(2 * step + 1), strict=True)))


def drawn_losses(model: FlowModel, batch: Drawn) -> dict[str, torch.Tensor]:
    """`flow_losses` without its drawing, under a chunk mask."""
    tokens = TokenBatch(batch.tokens)
    masks = model.masks(tokens, (5, 15))
    y = flow.path_point(batch.noise, batch.mel, batch.time)
    velocity = model.decoder.velocity(y, batch.time, model.condition(tokens, masks), masks[1])
    return {"loss": masked_mean((velocity - flow.path_velocity(batch.noise, batch.mel)).square(), masks[1])}


def plain(directory: Path) -> dict[str, torch.Tensor]:
    """In one process the doubled batch as one batch; without dropout.

    In double precision: Adam makes whole steps of gradients that are rounding, 2e-6 in a weight whose gradient is zero.
    """
    model = tiny_flow(replace(TINY, encoder=replace(TINY.encoder, dropout=0.0))).double()
    single = "WORLD_SIZE" not in os.environ
    config = replace(CONFIG, num_shares=1) if single else CONFIG
    fit(model, doubled_at if single else drawn_at, drawn_losses, config, directory, "test")
    return dict(model.named_parameters())


def shared(directory: Path) -> dict[str, torch.Tensor]:
    """The loss of the trainer: noise, times, masks, dropout, all drawn for each share; ragged batches."""

    def batch_at(number: int) -> FlowBatch:
        batch = recordings(3, 20, seed=number)
        return batch._replace(tokens=batch.tokens._replace(lengths=torch.tensor([20, 15, 10])))

    model = tiny_flow()
    fit(model, batch_at, flow_losses, CONFIG, directory, "test")
    return dict(model.named_parameters())


@pytest.mark.parametrize("trained", [plain, shared])
def test_two_processes_equal_one(tmp_path: Path, trained) -> None:
    alone = {name: parameter.detach() for name, parameter in trained(tmp_path / "one").items()}
    start = tiny_flow().encoder_proj.weight
    assert (alone["encoder_proj.weight"] - start).abs().max() > 1e-3
    for together in run(trained, 2, tmp_path / "two"):
        for name, one in alone.items():
            torch.testing.assert_close(
                together[name].detach(), one, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
