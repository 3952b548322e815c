"""Megatron's pipeline schedules, 1F1B and interleaved: in which order a rank works, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Work(NamedTuple):
    """Forward or backward of one micro-batch through one chunk of a rank."""

    backward: bool
    micro_batch: int
    chunk: int


class Event(NamedTuple):
    """Work with its place in time, in seconds from the start of the step."""

    work: Work
    start: float
    stop: float


@dataclass(frozen=True)
class Pipeline:
    """Seconds of each chunk, by rank and virtual stage, and of a transfer to the next one."""

    forward: Sequence[Sequence[float]]
    backward: Sequence[Sequence[float]]
    transfer: float
    num_microbatches: int

    @property
    def num_ranks(self) -> int:
        """Pipeline ranks."""
        return len(self.forward)

    @property
    def num_chunks(self) -> int:
        """Virtual stages of a rank."""
        return len(self.forward[0])


def order_of(rank: int, num_ranks: int, num_chunks: int, num_microbatches: int) -> list[Work]:
    """What `rank` does in which order: warm-up forwards, then a forward and a backward in turn, then backwards."""
    total = num_microbatches * num_chunks
    warm_up = num_ranks - rank - 1
    if num_chunks > 1:
        warm_up = 2 * warm_up + (num_chunks - 1) * num_ranks
    warm_up = min(warm_up, total)
    forwards = [Work(False, *_place(step, num_ranks, num_chunks)) for step in range(total)]
    backwards = [
        Work(True, micro_batch, num_chunks - 1 - chunk)
        for micro_batch, chunk in (_place(step, num_ranks, num_chunks) for step in range(total))
    ]
    order = forwards[:warm_up]
    for forward, backward in zip(forwards[warm_up:], backwards, strict=False):
        order += [forward, backward]
    return order + backwards[total - warm_up :]


def simulate(pipeline: Pipeline) -> list[list[Event]]:
    """Events of each rank; every piece of work starts when its rank is free and its input has arrived."""
    ranks, chunks = pipeline.num_ranks, pipeline.num_chunks
    orders = [order_of(rank, ranks, chunks, pipeline.num_microbatches) for rank in range(ranks)]
    done: dict[tuple[bool, int, int], float] = {}  # (backward, micro-batch, stage) → end
    events: list[list[Event]] = [[] for _ in range(ranks)]
    position, free = [0] * ranks, [0.0] * ranks
    moved = True
    while moved:
        moved = False
        for rank in range(ranks):
            while position[rank] < len(orders[rank]):
                work = orders[rank][position[rank]]
                arrival = _arrival(work, rank, pipeline, done)
                if arrival is None:
                    break
                seconds = (pipeline.backward if work.backward else pipeline.forward)[rank][work.chunk]
                start = max(free[rank], arrival)
                free[rank] = start + seconds
                done[work.backward, work.micro_batch, work.chunk * ranks + rank] = free[rank]
                events[rank].append(Event(work, start, free[rank]))
                position[rank] += 1
                moved = True
    assert all(place == len(order) for place, order in zip(position, orders, strict=True)), "the schedule is stuck"
    return events


def duration(events: Sequence[Sequence[Event]]) -> float:
    """When the last rank is done."""
    return max(rank[-1].stop for rank in events)


def _place(step: int, num_ranks: int, num_chunks: int) -> tuple[int, int]:
    """(micro-batch, chunk): micro-batches go in groups of `num_ranks` through each chunk."""
    if num_chunks == 1:
        return step, 0
    group, rest = divmod(step, num_ranks * num_chunks)
    return group * num_ranks + rest % num_ranks, rest // num_ranks


def _arrival(work: Work, rank: int, pipeline: Pipeline, done: dict[tuple[bool, int, int], float]) -> float | None:
    """When the input of `work` is there; None if what makes it has not run yet."""
    stage = work.chunk * pipeline.num_ranks + rank
    last = pipeline.num_ranks * pipeline.num_chunks - 1
    if not work.backward:
        if stage == 0:
            return 0.0
        source = done.get((False, work.micro_batch, stage - 1))
    elif stage == last:
        return done.get((False, work.micro_batch, stage))
    else:
        source = done.get((True, work.micro_batch, stage + 1))
    return None if source is None else source + pipeline.transfer
