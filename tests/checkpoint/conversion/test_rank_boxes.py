"""Shards of a layout, worked by hand and covering every tensor once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.conversion.rank_boxes import plan_ranks, rank_boxes
from megatron_aqaa.checkpoint.mapping import EMBEDDING, HEAD, megatron_shapes
from megatron_aqaa.checkpoint.torch_dist_directory import Beside
from megatron_aqaa.platform import ParallelConfig
from tests.checkpoint.test_mapping import SMALL, STEP1_3B, slices

FC1, QKV, FC2 = (
    f"decoder.layers.{name}.weight" for name in ("mlp.linear_fc1", "self_attention.linear_qkv", "mlp.linear_fc2")
)
NORM = "decoder.layers.mlp.linear_fc1.layer_norm_weight"


def test_a_rank_has_its_part_of_gate_and_of_up():
    assert rank_boxes(FC1, (1, 12, 8), ParallelConfig(2)) == {
        0: (Box((0, 0, 0), (1, 3, 8)), Box((0, 6, 0), (1, 3, 8))),
        1: (Box((0, 3, 0), (1, 3, 8)), Box((0, 9, 0), (1, 3, 8))),
    }


def test_columns_and_copies():
    assert rank_boxes(FC2, (1, 8, 6), ParallelConfig(2)) == {
        0: (Box((0, 0, 0), (1, 8, 3)),),
        1: (Box((0, 0, 3), (1, 8, 3)),),
    }
    assert rank_boxes(NORM, (1, 8), ParallelConfig(2)) == {0: (Box((0, 0), (1, 8)),)}
    assert rank_boxes("embedding.codebook_type", (3, 8), ParallelConfig(2, 2)) == {0: (Box((0, 0), (3, 8)),)}


def test_interleaved_stages_take_turns():
    """Eight layers, two ranks, two stages each: layers 0 1 4 5 and 2 3 6 7."""
    found = rank_boxes(NORM, (8, 4), ParallelConfig(1, 2, 2))
    assert {rank: [box.offsets[0] for box in boxes] for rank, boxes in found.items()} == {
        0: [0, 1, 4, 5],
        1: [2, 3, 6, 7],
    }
    assert rank_boxes(EMBEDDING, (8, 4), ParallelConfig(2, 2)).keys() == {0, 1}
    assert rank_boxes(HEAD, (8, 4), ParallelConfig(2, 2)).keys() == {2, 3}


@pytest.mark.parametrize("parallel", [ParallelConfig(), ParallelConfig(2), ParallelConfig(2, 2), ParallelConfig(1, 2)])
def test_every_element_is_somewhere_once(parallel):
    for name, shape in megatron_shapes(SMALL, 128).items():
        count = torch.zeros(shape)
        for boxes in rank_boxes(name, shape, parallel).values():
            for box in boxes:
                count[slices(box)] += 1
        assert (count == 1).all(), name


@pytest.mark.parametrize(
    ("name", "shape", "parallel", "message"),
    [
        (NORM, (3, 8), ParallelConfig(1, 2), "3 layers do not divide over 2 pipeline stages"),
        (QKV, (1, 15, 8), ParallelConfig(2), "15 rows do not divide over 2 tensor-parallel ranks"),
        (FC2, (1, 8, 5), ParallelConfig(2), "5 columns do not divide"),
    ],
)
def test_what_does_not_divide_is_refused(name, shape, parallel, message):
    with pytest.raises(ValueError, match=message):
        rank_boxes(name, shape, parallel)


def test_the_3b_at_tp8_pp2_splits_the_rows_of_a_group():
    """Four groups over eight ranks: 448 of the 3584 rows each, half a group."""
    shapes = megatron_shapes(STEP1_3B, 74752)
    dtypes = dict.fromkeys(shapes, torch.bfloat16)
    tensors, files = plan_ranks(shapes, dtypes, ParallelConfig(8, 2), 2 << 30, Beside({}))
    assert {box.sizes for box in tensors[QKV].boxes} == {(1, 448, 3072)}
    assert [file.name.split("/")[-1] for file in files] == [f"__{rank}_0.distcp" for rank in range(16)]
    assert sum(region.box.num_elements for file in files for region in file.regions) == 3_529_706_496
    one_layer = dataclasses.replace(STEP1_3B, num_layers=1)
    assert len(plan_ranks(megatron_shapes(one_layer, 128), dtypes, ParallelConfig(8, 1), 1, Beside({}))[1]) > 16
