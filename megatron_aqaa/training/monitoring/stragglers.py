"""Which rank holds the others up: time that each spends on its own work, compared once an interval.

A step takes equally long on every rank, since all wait for the slowest. What differs is a rank's own work: fetching
data and the model's forward pass (with its tensor- and context-parallel transfers: a slow rank slows its group, which
is usually one node). Backward is not looked at: its transfers between groups cannot be told from work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state

from megatron_aqaa import platform
from megatron_aqaa.platform.device import peak_memory_bytes

GIB = float(1 << 30)


class RankReport(NamedTuple):
    """What an interval looked like over all ranks.

    Attributes:
        slowest_rank: with the most work of its own, measured by `slowest_ratio`; None for one rank alone.
        slowest_ratio: its seconds over the median of the others at its pipeline stage (of all others, where it has
            the stage for itself).
        forward_seconds: of the slowest rank (of the only one), in an average step.
        data_wait_seconds: likewise.
        max_memory_gib: the highest peak of all ranks.
    """

    slowest_rank: int | None
    slowest_ratio: float | None
    forward_seconds: float
    data_wait_seconds: float
    max_memory_gib: float

    def __str__(self) -> str:
        parts = f"forward {1e3 * self.forward_seconds:.1f} ms and data {1e3 * self.data_wait_seconds:.1f} ms a step"
        return f"slowest rank {self.slowest_rank}: {parts}, {self.slowest_ratio:.2f} × the median of the others"


class ForwardClock:
    """Adds up the time of the models' forward passes in training mode.

    Args:
        model_chunks: of this rank; they are given hooks.
    """

    def __init__(self, model_chunks: list[Any]) -> None:
        self.on_gpu = platform.device().type == "cuda"
        self.marks: list[Any] = []
        for chunk in model_chunks:
            chunk.register_forward_pre_hook(self._mark)
            chunk.register_forward_hook(self._mark)

    def take(self) -> float:
        """Seconds since the last call; on a GPU, between two steps, when its work is done."""
        marks, self.marks = self.marks, []
        pairs = zip(marks[::2], marks[1::2], strict=True)
        if self.on_gpu:
            return sum(begin.elapsed_time(end) for begin, end in pairs) / 1e3
        return float(sum(end - begin for begin, end in pairs))

    def _mark(self, module: Any, *_: Any) -> None:
        if not module.training:
            return
        if self.on_gpu:
            event = torch.Event(platform.device(), enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())


class Stragglers:
    """Collects this rank's numbers of every step; compares those of all ranks once an interval.

    Args:
        model_chunks: of this rank.
    """

    def __init__(self, model_chunks: list[Any]) -> None:
        self.clock = ForwardClock(model_chunks)
        self._clear()

    def add(self, data_wait_s: float) -> None:
        """Take a finished step into account."""
        self.steps += 1
        self.forward_s += self.clock.take()
        self.data_wait_s += data_wait_s

    def report(self) -> RankReport:
        """Of the steps since the last report; collective: one all-gather of four numbers a rank."""
        steps = max(self.steps, 1)
        stage = parallel_state.get_pipeline_model_parallel_rank()
        own = [self.forward_s / steps, self.data_wait_s / steps, peak_memory_bytes() / GIB, float(stage)]
        self._clear()
        rows = _gathered(own)
        rank, ratio = slowest([forward + wait for forward, wait, _, _ in rows], [int(row[3]) for row in rows])
        forward_s, data_wait_s, _, _ = rows[rank or 0]
        return RankReport(rank, ratio, forward_s, data_wait_s, max(row[2] for row in rows))

    def _clear(self) -> None:
        self.steps, self.forward_s, self.data_wait_s = 0, 0.0, 0.0


def slowest(seconds: Sequence[float], stages: Sequence[int]) -> tuple[int | None, float | None]:
    """Rank with the highest ratio to the median of the others at its stage, and this ratio.

    Args:
        seconds: of each rank.
        stages: pipeline stage of each rank: stages have different work and are not compared with each other, but for
            those that one rank has to itself.
    """
    everybody = range(len(seconds))
    by_stage = {stage: [rank for rank in everybody if stages[rank] == stage] for stage in sorted(set(stages))}
    ratios: dict[int, float] = {}
    for ranks in by_stage.values():
        worst = max(ranks, key=seconds.__getitem__)  # its ratio is the highest of its stage
        peers = [rank for rank in (ranks if len(ranks) > 1 else everybody) if rank != worst]
        if peers:
            ratios[worst] = seconds[worst] / max(statistics.median(seconds[peer] for peer in peers), 1e-9)
    if not ratios:
        return None, None
    rank = max(ratios, key=ratios.__getitem__)
    return rank, ratios[rank]


def _gathered(own: list[float]) -> list[list[float]]:
    """Everybody's numbers, in order of ranks."""
    mine = torch.tensor(own, dtype=torch.float64, device=platform.device())
    everybody = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everybody, mine)
    return torch.stack(everybody).tolist()
