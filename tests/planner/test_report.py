"""Text, YAML lines and picture of a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from megatron_aqaa.config import parse_config
from megatron_aqaa.model import ModelConfig
from megatron_aqaa.planner.layout import Layout
from megatron_aqaa.planner.pictures import draw_plan
from megatron_aqaa.planner.plan import AQAA
from megatron_aqaa.planner.prediction import predict
from megatron_aqaa.planner.report import memory_lines, plan_lines, search_lines, yaml_lines
from megatron_aqaa.planner.search import search
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.lm_config import LoopConfig
from tests.planner.sizes import SMALL, h100, small_plan

CLUSTER = h100()
LAYOUTS = [
    Layout(),
    Layout(2, 2, 4, sequence_parallel=True),
    Layout(1, 2, 2, 2, pipeline_model_parallel_layout="Et|t*3|t*3|tL"),
    Layout(1, 4, None, pipeline_model_parallel_layout="Et|t*3|t*3|tL", overlap_grad_reduce=True),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_lines_to_paste_load_as_settings(layout: Layout) -> None:
    plan = small_plan(layout)
    sections = yaml.safe_load(yaml_lines(plan))
    parallel = parse_config(ParallelConfig, sections["parallel"])
    assert vars(parallel) == vars(layout)
    loop = parse_config(LoopConfig, {"steps": 1, **sections["training"]})
    assert (loop.micro_batch_size, loop.global_batch_size) == (1, 16)
    sizes = {"num_layers": 8, "hidden_size": 64, "ffn_hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 4}
    model = parse_config(ModelConfig, {**sizes, **sections["model"]})
    assert (model.recompute, model.recompute_logits) == ("none", False)


def test_equal_ranks_share_a_line() -> None:
    memory = predict(small_plan(Layout(pipeline_model_parallel_size=4)), CLUSTER, AQAA).memory
    same = [memory[0], memory[0], memory[1], memory[3]]
    assert [line.split("  ")[0] for line in memory_lines(same, CLUSTER)[1:]] == ["0 … 1", "2", "3"]


def test_a_plan_says_size_step_and_speech() -> None:
    text = "\n".join(plan_lines(predict(small_plan(), CLUSTER, AQAA), CLUSTER))
    for part in ("TP1 PP1 DP2 mbs1 on 2 × H100", "8 micro-batches a step", "MFU", "hours of speech"):
        assert part in text


def test_the_search_prints_ten_with_reasons() -> None:
    found = search(16, SMALL, Layout(), small_plan(batch=32).batch, CLUSTER, AQAA)
    lines = search_lines(found)
    assert lines[2].endswith(": fastest")
    assert len([line for line in lines if " mbs" in line]) == 10
    assert all("+" in line for line in lines[3:12])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_picture_is_drawn(tmp_path: Path, layout: Layout) -> None:
    prediction = predict(small_plan(layout), CLUSTER, AQAA)
    draw_plan(prediction, CLUSTER, AQAA, tmp_path / "plan.png")
    with Image.open(tmp_path / "plan.png") as picture:
        assert picture.width > 1000 and picture.height > 400
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
