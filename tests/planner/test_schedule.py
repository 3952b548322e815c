"""The pipeline's timetable: complete, in order, and with the bubble of the textbook."""

from __future__ import annotations

import pytest

from megatron_aqaa.planner.pipeline_time import pipeline_seconds, played_seconds
from megatron_aqaa.planner.schedule import Pipeline, duration, order_of, simulate

FORWARD, BACKWARD = 1.0, 2.0


def equal(ranks: int, chunks: int, microbatches: int) -> Pipeline:
    """Every rank works one second forward and two backward on a micro-batch."""
    forward = [[FORWARD / chunks] * chunks for _ in range(ranks)]
    backward = [[BACKWARD / chunks] * chunks for _ in range(ranks)]
    return Pipeline(forward, backward, 0.0, microbatches)


SHAPES = [(1, 1, 4), (2, 1, 4), (4, 1, 16), (4, 1, 2), (2, 2, 4), (4, 3, 8), (8, 11, 16), (3, 2, 3)]


@pytest.mark.parametrize(("ranks", "chunks", "microbatches"), SHAPES)
def test_every_piece_is_done_once_forward_before_backward(ranks: int, chunks: int, microbatches: int) -> None:
    for rank in range(ranks):
        order = order_of(rank, ranks, chunks, microbatches)
        assert len(set(order)) == len(order) == 2 * chunks * microbatches
        for index, work in enumerate(order):
            if work.backward:
                assert work._replace(backward=False) in order[:index]


@pytest.mark.parametrize(("ranks", "chunks", "microbatches"), [shape for shape in SHAPES if shape[2] >= shape[0]])
def test_equal_chunks_have_the_bubble_of_the_textbook(ranks: int, chunks: int, microbatches: int) -> None:
    pipeline = equal(ranks, chunks, microbatches)
    work = microbatches * (FORWARD + BACKWARD)
    bubble = (ranks - 1) / (microbatches * chunks)
    assert duration(simulate(pipeline)) == pytest.approx(work * (1 + bubble))
    assert pipeline_seconds(pipeline) == pytest.approx(work * (1 + bubble))


def test_nothing_starts_before_its_input() -> None:
    pipeline = Pipeline([[1.0, 2.0], [1.5, 0.5]], [[2.0, 3.0], [1.0, 2.5]], 0.25, 4)
    ends = {}
    for rank, events in enumerate(simulate(pipeline)):
        for event in events:
            ends[event.work.backward, event.work.micro_batch, event.work.chunk * 2 + rank] = event
    for (backward, micro_batch, stage), event in ends.items():
        before = stage + 1 if backward else stage - 1
        if 0 <= before <= 3:
            assert event.start >= ends[backward, micro_batch, before].stop + 0.25


@pytest.mark.parametrize(("chunks", "slack"), [(1, 0.001), (2, 0.06), (4, 0.06)])
def test_the_formula_is_the_timetable_with_a_heavier_last_stage(chunks: int, slack: float) -> None:
    """The head makes the last chunk heavier by half a layer of eleven or so."""
    pipeline = equal(4, chunks, 16)
    heavy = Pipeline(
        [*pipeline.forward[:-1], [*pipeline.forward[-1][:-1], pipeline.forward[-1][-1] + 0.05 * FORWARD]],
        [*pipeline.backward[:-1], [*pipeline.backward[-1][:-1], pipeline.backward[-1][-1] + 0.05 * BACKWARD]],
        0.0,
        16,
    )
    assert pipeline_seconds(heavy) == pytest.approx(duration(simulate(heavy)), rel=slack)


def test_more_ranks_have_more_bubble_and_more_chunks_less() -> None:
    lasts = [duration(simulate(equal(ranks, 1, 16))) for ranks in (1, 2, 4, 8)]
    assert lasts == sorted(set(lasts))
    lasts = [duration(simulate(equal(8, chunks, 16))) for chunks in (1, 2, 4)]
    assert lasts == sorted(set(lasts), reverse=True)


@pytest.mark.parametrize(("ranks", "chunks", "microbatches"), [(4, 1, 37), (4, 3, 40), (8, 2, 64), (2, 4, 30)])
def test_a_long_step_is_as_long_as_its_whole_timetable(ranks: int, chunks: int, microbatches: int) -> None:
    pipeline = equal(ranks, chunks, microbatches)
    forward = [[seconds * (1 + 0.1 * rank) for seconds in row] for rank, row in enumerate(pipeline.forward)]
    forward[-1][-1] *= 1.7
    uneven = Pipeline(forward, pipeline.backward, 0.05, microbatches)
    assert played_seconds(uneven) == pytest.approx(duration(simulate(uneven)), rel=0.005)
