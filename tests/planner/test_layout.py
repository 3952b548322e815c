"""Which rank holds which layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from megatron_aqaa.planner.layout import Chunk, Layout, stages, write_stages
from megatron_aqaa.planner.stage_options import lighter_ends, pipeline_options, spread
from tests.planner.sizes import RELEASED_130B, SMALL


def pipeline(ranks: int, virtual: int | None = None, text: str | None = None) -> Layout:
    return Layout(
        pipeline_model_parallel_size=ranks,
        virtual_pipeline_model_parallel_size=virtual,
        pipeline_model_parallel_layout=text,
    )


def test_virtual_stages_go_round_the_ranks() -> None:
    whole = stages(SMALL, pipeline(2, 2))
    assert whole == ((Chunk(2, embedding=True), Chunk(2)), (Chunk(2), Chunk(2, head=True)))


def test_a_layout_may_be_uneven() -> None:
    whole = stages(SMALL, pipeline(2, 2, "Et|t*3|ttt|tL"))
    assert whole == ((Chunk(1, embedding=True), Chunk(3)), (Chunk(3), Chunk(1, head=True)))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (pipeline(3), "must be a multiple of pipeline stages = 3"),
        (pipeline(2, 3), "must be a multiple of pipeline stages = 6"),
        (pipeline(2, None, "Et*4|t*3L"), "has 7 layers t, but model.num_layers = 8"),
        (Layout(tensor_model_parallel_size=32), "num_attention_heads = 16 must be a multiple"),
        (Layout(tensor_model_parallel_size=7), "num_attention_heads = 16 must be a multiple"),
    ],
)
def test_what_does_not_divide_is_named(layout: Layout, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stages(SMALL, layout)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor_model_parallel_size": 0}, "must be at least 1"),
        ({"sequence_parallel": True}, "needs tensor_model_parallel_size"),
        ({"virtual_pipeline_model_parallel_size": 2}, "must be at least 2, with"),
        ({"overlap_param_gather": True}, "needs overlap_grad_reduce"),
        ({"tp_comm_overlap": True}, "needs sequence_parallel"),
        ({"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "Et*4|t*3|tL"}, "has 3 stages"),
    ],
)
def test_impossible_sections_are_named(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(**sizes)


@pytest.mark.parametrize(("ranks", "chunks"), [(8, 1), (8, 2), (8, 4), (6, 1), (5, 3), (16, 2), (3, 1)])
def test_spread_layers_are_all_there_and_ranks_as_equal_as_can_be(ranks: int, chunks: int) -> None:
    layers = spread(88, ranks, chunks)
    by_rank = [sum(layers[rank::ranks]) for rank in range(ranks)]
    assert sum(layers) == 88 and len(layers) == ranks * chunks
    assert max(by_rank) - min(by_rank) <= 1
    assert by_rank[0] == min(by_rank) and by_rank[-1] == min(by_rank)


def test_lighter_ends_move_a_layer_from_embedding_and_head() -> None:
    even, light = spread(88, 8, 2), lighter_ends(88, 8, 2)
    assert sum(light) == 88
    assert light[0] == even[0] - 1 and light[-1] == even[-1] - 1


def test_every_option_is_a_layout_of_the_model() -> None:
    for ranks in range(1, 12):
        for virtual, text in pipeline_options(88, ranks):
            whole = stages(RELEASED_130B, pipeline(ranks, virtual, text))
            assert sum(chunk.num_layers for rank in whole for chunk in rank) == 88


def test_88_layers_on_8_ranks_interleave_evenly_only_11_times() -> None:
    equal = [virtual or 1 for virtual, text in pipeline_options(88, 8) if text is None]
    assert equal == [1, 11]


def test_written_stages_read_back() -> None:
    layout = pipeline(4, None, write_stages([1, 3, 3, 1]))
    assert [rank[0].num_layers for rank in stages(dataclasses.replace(SMALL), layout)] == [1, 3, 3, 1]
