"""Weights that are read without calling their module are waited for, where DDP gathers them late."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa.model import AQAAModel, build_model
from tests.model.sizes import VOCABULARY, variant


def called_before(model: AQAAModel, module: torch.nn.Module) -> list[str]:
    """Hooks on `module` and on the first norm, in the order in which a forward and backward pass runs them."""
    order: list[str] = []
    norm = model.decoder.layers[0].input_layernorm
    handles = [
        module.register_forward_pre_hook(lambda *_: order.append("weights")),
        norm.register_forward_pre_hook(lambda *_: order.append("layers")),
    ]
    token_ids = torch.arange(8)[None]
    model(token_ids, labels=token_ids)
    for handle in handles:
        handle.remove()
    return order


def test_the_embedding_is_waited_for_before_the_layers(one_process: None) -> None:
    model = build_model(variant(), VOCABULARY)[0]
    assert called_before(model, model.embedding.word_embeddings) == ["weights", "layers"]


@pytest.mark.parametrize("recompute_logits", [False, True])
def test_the_head_is_waited_for_once(one_process: None, recompute_logits: bool) -> None:
    model = build_model(variant(recompute_logits=recompute_logits), VOCABULARY)[0]
    assert called_before(model, model.output_layer) == ["layers", "weights"]
