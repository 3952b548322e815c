"""Who is slowest, by hand; the clock sees training passes alone."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from megatron_aqaa.training.monitoring.stragglers import ForwardClock, slowest


def test_the_slowest_by_hand() -> None:
    assert slowest([1.0, 3.0, 1.0, 2.0], [0, 0, 0, 0]) == (1, 3.0)
    assert slowest([2.0, 3.0], [0, 0]) == (1, 1.5)


def test_stages_are_not_compared_with_each_other() -> None:
    """The last stage has the output head: twice the work is right there."""
    rank, ratio = slowest([1.0, 1.0, 1.3, 2.0, 2.0, 2.1], [0, 0, 0, 1, 1, 1])
    assert (rank, ratio) == (2, 1.3)


def test_a_stage_of_one_rank_is_compared_with_all() -> None:
    assert slowest([1.0, 5.0, 1.0], [0, 1, 2]) == (1, 5.0)


def test_one_rank_alone_is_not_slow() -> None:
    assert slowest([1.0], [0]) == (None, None)


class Slow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return x


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the host's clock")
def test_the_clock_runs_in_training_passes_alone() -> None:
    module = Slow()
    clock = ForwardClock([module])
    module(torch.zeros(1))
    module(torch.zeros(1))
    assert 0.1 <= clock.take() < 1.0
    module.eval()
    module(torch.zeros(1))
    assert clock.take() == 0.0
