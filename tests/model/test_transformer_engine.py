"""Settings that need Transformer Engine: refused without it, and what they turn into with it (configuration only)."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from megatron_aqaa.model import transformer_engine
from megatron_aqaa.model.config import to_transformer_config
from megatron_aqaa.model.transformer_engine import has_transformer_engine, start_tensor_overlap
from megatron_aqaa.platform import ParallelConfig
from tests.model.sizes import variant

OVERLAP = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True, tp_comm_overlap=True)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU and Transformer Engine."""
    monkeypatch.setattr(transformer_engine, "has_gpu", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())


@pytest.mark.parametrize(
    ("has_gpu", "missing"), [(False, "needs a GPU"), (True, r"needs Transformer Engine \(`pip install .*\[gpu\]`\)")]
)
def test_without_it_the_settings_are_refused_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, missing: str
) -> None:
    monkeypatch.setattr(transformer_engine, "has_gpu", lambda: has_gpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not has_transformer_engine()
    with pytest.raises(ValueError, match=f"model.fp8 {missing}.*model.fp8=null"):
        to_transformer_config(variant(fp8="tensorwise", params_dtype="bf16"), ParallelConfig())
    with pytest.raises(ValueError, match=f"tp_comm_overlap {missing}.*tp_comm_overlap=false"):
        to_transformer_config(variant(), OVERLAP)


@pytest.mark.parametrize(("recipe", "history"), [("tensorwise", 1), ("delayed", 1024)])
def test_eight_bit_products(engine: None, recipe: str, history: int) -> None:
    config = to_transformer_config(variant(fp8=recipe, params_dtype="bf16"), ParallelConfig())
    assert (config.fp8, config.fp8_recipe, config.fp8_amax_history_len) == ("hybrid", recipe, history)
    assert to_transformer_config(variant(), ParallelConfig()).fp8 is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fp8": "blockwise"}, "known are tensorwise, delayed.* 3904 = 30.5 × 128"),
        ({"fp8": "tensorwise", "params_dtype": "fp32"}, "needs model.params_dtype: bf16"),
    ],
)
def test_what_eight_bit_products_cannot_be(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        variant(**{"params_dtype": "bf16", **changes})


def test_slices_that_eight_bit_products_cannot_have(engine: None) -> None:
    with pytest.raises(ValueError, match="ffn_hidden_size = 48 must be a multiple of .* = 2, and .* one of 16"):
        to_transformer_config(variant(ffn_hidden_size=48, fp8="delayed", params_dtype="bf16"), OVERLAP)


def test_overlap_reaches_megatron(engine: None) -> None:
    assert to_transformer_config(variant(), OVERLAP).tp_comm_overlap
    assert not to_transformer_config(variant(), ParallelConfig()).tp_comm_overlap


@pytest.mark.parametrize(("fp8", "mode"), [(True, "eight bits"), (False, "none")])
def test_buffers_have_the_shape_of_a_rank(monkeypatch: pytest.MonkeyPatch, fp8: bool, mode: str) -> None:
    asked: dict[str, Any] = {}
    modes = SimpleNamespace(FP8="eight bits", NONE="none")
    base = SimpleNamespace(UserBufferQuantizationMode=modes, initialize_ub=asked.update)
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["transformer_engine.pytorch"], "module", SimpleNamespace(base=base), raising=False)
    layout = ParallelConfig(
        tensor_model_parallel_size=8, sequence_parallel=True, context_parallel_size=2, tp_comm_overlap=True
    )
    start_tensor_overlap(layout, hidden_size=12288, num_tokens=32768, fp8=fp8)
    assert (asked["shape"], asked["tp_size"]) == ([16384, 12288], 8)
    assert asked["quantization_modes"] == [mode]
