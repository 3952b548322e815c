"""The planner's own reading of `model` and `parallel` beside the trainer's, and parameter counts."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_aqaa.model import ModelConfig
from megatron_aqaa.planner.parameters import count_parameters
from megatron_aqaa.planner.planned_model import PlannedModel
from tests.planner.sizes import RELEASED_3B, RELEASED_130B, SMALL

PLANNER_ONLY = {"gated_linear_unit", "linear_bias", "vocab_size"}


def defaults(cls: type) -> dict[str, object]:
    return {field.name: field.default for field in dataclasses.fields(cls)}


def test_the_model_section_is_the_trainers() -> None:
    planned = defaults(PlannedModel)
    assert {name: value for name, value in planned.items() if name not in PLANNER_ONLY} == defaults(ModelConfig)


@pytest.mark.parametrize(("model", "count"), [(RELEASED_130B, 131_946_590_208), (RELEASED_3B, 3_529_706_496)])
def test_released_models_have_their_published_size(model: PlannedModel, count: int) -> None:
    assert count_parameters(model) == count


def test_every_part_is_counted_once() -> None:
    model = dataclasses.replace(
        SMALL, add_qkv_bias=True, codebook_type_embedding=True, group_position_embedding=True, kv_channels=80
    )
    query, key = 16 * 80, 4 * 80
    layer = 1024 * (query + 2 * key) + (query + 2 * key) + query * 1024 + 3 * 1024 * 2816 + 2 * 1024
    assert count_parameters(model) == 8 * layer + 2 * 5376 * 1024 + 1024 + (3 + 5) * 1024
    tied = dataclasses.replace(model, untie_embeddings_and_output_weights=False)
    assert count_parameters(tied) == count_parameters(model) - 5376 * 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params_dtype": "fp64"}, "takes bf16 and fp32"),
        ({"num_query_groups": 3}, "must be a multiple of num_query_groups = 3"),
        ({"hidden_size": 1000}, "give kv_channels"),
    ],
)
def test_mistakes_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)
