"""The table of names against hand-worked layouts of Megatron's fused tensors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from megatron_aqaa.checkpoint.conversion.families import read_config
from megatron_aqaa.checkpoint.mapping import (
    check_tensors,
    huggingface_shapes,
    links,
    megatron_shapes,
    row_of,
    rows,
)
from megatron_aqaa.model.config import ModelConfig
from tests.checkpoint.conversion.tiny_huggingface import CONFIGS, configuration, random_tensors

SMALL = ModelConfig(
    num_layers=2, hidden_size=8, ffn_hidden_size=6, num_attention_heads=4, num_query_groups=2, add_qkv_bias=True
)
STEP1_130B = ModelConfig(
    num_layers=88, hidden_size=12288, ffn_hidden_size=31232, num_attention_heads=96, num_query_groups=8
)
STEP1_3B = ModelConfig(
    num_layers=32, hidden_size=3072, ffn_hidden_size=8192, num_attention_heads=48, num_query_groups=4
)


def fused(model: ModelConfig, tensors: dict[str, Tensor], vocabulary_rows: int) -> dict[str, Tensor]:
    """Megatron's tensors, put together from the links."""
    found = {name: torch.full(shape, torch.nan) for name, shape in megatron_shapes(model, vocabulary_rows).items()}
    for link in links(model, vocabulary_rows):
        part = tensors[link.name][slices(link.box)]
        found[link.megatron][slices(link.megatron_box)] = part.view(link.megatron_box.sizes)
    return found


def slices(box):
    return tuple(slice(start, start + size) for start, size in zip(box.offsets, box.sizes, strict=True))


def numbered(model: ModelConfig, vocabulary_rows: int) -> dict[str, Tensor]:
    return {
        name: 1000 * i + torch.arange(float(torch.Size(shape).numel())).view(shape)
        for i, (name, shape) in enumerate(huggingface_shapes(model, vocabulary_rows).items())
    }


def test_query_key_value_lie_group_by_group():
    """Two groups of two query heads, heads of width 2: q0 q1 k0 v0, q2 q3 k1 v1."""
    tensors = numbered(SMALL, 5)
    fused_weight = fused(SMALL, tensors, 5)["decoder.layers.self_attention.linear_qkv.weight"]
    q, k, v = (tensors[f"model.layers.1.self_attn.{letter}_proj.weight"] for letter in "qkv")
    assert torch.equal(fused_weight[1], torch.cat([q[0:4], k[0:2], v[0:2], q[4:8], k[2:4], v[2:4]]))
    fused_bias = fused(SMALL, tensors, 5)["decoder.layers.self_attention.linear_qkv.bias"]
    q, k, v = (tensors[f"model.layers.0.self_attn.{letter}_proj.bias"] for letter in "qkv")
    assert torch.equal(fused_bias[0], torch.cat([q[0:4], k[0:2], v[0:2], q[4:8], k[2:4], v[2:4]]))


def test_gate_lies_before_up():
    tensors = numbered(SMALL, 5)
    found = fused(SMALL, tensors, 5)["decoder.layers.mlp.linear_fc1.weight"]
    gate, up = (tensors[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    assert torch.equal(found[1], torch.cat([gate, up]))


@pytest.mark.parametrize("tied", [False, True])
def test_links_cover_every_element_of_both_sides_once(tied):
    model = dataclasses.replace(SMALL, untie_embeddings_and_output_weights=not tied)
    here, there = (
        {name: torch.zeros(shape) for name, shape in shapes(model, 5).items()}
        for shapes in (huggingface_shapes, megatron_shapes)
    )
    for link in links(model, 5):
        if link.name in here:
            here[link.name][slices(link.box)] += 1
            there[link.megatron][slices(link.megatron_box)] += 1
    assert all((tensor == 1).all() for tensor in (*here.values(), *there.values()))
    assert ("lm_head.weight" in here) is ("output_layer.weight" in there) is not tied
    assert [link.megatron for link in links(model, 5) if link.name == "lm_head.weight"] == [
        "embedding.word_embeddings.weight" if tied else "output_layer.weight"
    ]


@pytest.mark.parametrize(("model", "parameters"), [(STEP1_130B, 131_946_590_208), (STEP1_3B, 3_529_706_496)])
def test_the_released_sizes(model, parameters):
    for shapes in (huggingface_shapes(model, 74752), megatron_shapes(model, 74752)):
        assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters


@pytest.mark.parametrize("family", CONFIGS)
def test_the_tables_have_about_twenty_names(family):
    model = read_config(CONFIGS[family], "here").model
    names = [name for row in rows(model) for name in row.parts]
    assert len(names) == (15 if family == "qwen2" else 12)
    assert all(row_of(row.megatron) is not None for row in rows(model))
    assert row_of("decoder.layers.mlp.router.weight") is None


def test_order_is_that_of_transformers():
    names = list(huggingface_shapes(SMALL, 5))
    assert names[:2] == ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
    assert names[-2:] == ["model.norm.weight", "lm_head.weight"]


def test_missing_wrong_and_unknown_tensors_are_listed():
    config = configuration("llama")
    model = read_config(config, "here").model
    wanted = huggingface_shapes(model, 110)
    found = {name: tuple(tensor.shape) for name, tensor in random_tensors(config).items()}
    assert check_tensors("here", {**found, "audio.weight": (1,), "vision.weight": (2,)}, wanted) == [
        "audio.weight",
        "vision.weight",
    ]
    less = {name: shape for name, shape in found.items() if "layers.2" not in name}
    with pytest.raises(ValueError, match=r"here: 9 tensor\(s\) are missing .*model.layers.2.self_attn.q_proj.*…"):
        check_tensors("here", less, wanted)
    with pytest.raises(ValueError, match=r"1 tensor\(s\) of another shape: model.norm.weight is \[47\], \[48\] by"):
        check_tensors("here", {**found, "model.norm.weight": (47,)}, wanted)
