"""Which attention the layers get."""

from __future__ import annotations

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_aqaa.model import build_model
from megatron_aqaa.model.alibi import sqrt_alibi_slopes
from megatron_aqaa.model.explicit_attention import ExplicitBackend
from megatron_aqaa.model.flex_attention import FlexBackend
from megatron_aqaa.model.layer_spec import rank_rule
from megatron_aqaa.platform.device import has_gpu
from tests.model.sizes import TINY, VOCABULARY, variant


def backends() -> list[object]:
    return [layer.self_attention.core_attention.backend for layer in build_model(TINY, VOCABULARY)[0].decoder.layers]


@pytest.mark.skipif(has_gpu(), reason="the choice of a machine without a GPU")
def test_all_layers_share_one_explicit_back_end(one_process: None) -> None:
    first, *others = backends()
    assert isinstance(first, ExplicitBackend)
    assert others
    assert all(other is first for other in others)


@pytest.mark.gpu
def test_all_layers_share_one_compiled_back_end(one_process: None) -> None:
    first, *others = backends()
    assert isinstance(first, FlexBackend)
    assert all(other is first for other in others)


def test_slopes_are_published_scaled_or_zero(one_process: None) -> None:
    groups = ProcessGroupCollection.use_mpu_process_groups()
    published = sqrt_alibi_slopes(TINY.num_attention_heads)
    assert torch.equal(rank_rule(TINY, groups).slopes, published)
    assert torch.equal(rank_rule(variant(alibi_slope_scale=4.0), groups).slopes, 4.0 * published)
    assert not rank_rule(variant(position_embedding="rope"), groups).slopes.any()
