"""mergekit's YAML: filters, gradients, precedence, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_aqaa.checkpoint.merge.config import (
    MergeConfig,
    MergeModel,
    has_gradient,
    load_merge_config,
    tensor_settings,
)


@pytest.fixture
def load(tmp_path: Path):
    def write(raw: dict[str, Any] | str) -> MergeConfig:
        path = tmp_path / "merge.yml"
        path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
        return load_merge_config(path)

    return write


def linear(*weights: Any, **more: Any) -> dict[str, Any]:
    models = [{"model": f"m{index}", "parameters": {"weight": weight}} for index, weight in enumerate(weights)]
    return {"merge_method": "linear", "models": models, **more}


def ties(**more: Any) -> dict[str, Any]:
    return {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"weight": 1},
        **more,
    }


def test_the_usual_file(load):
    config = load("""
models:
  - model: sft1
    parameters: {weight: 5}
  - model: sft2
    parameters:
      weight: 5
  - model: dpo
    parameters:
      weight: 1
merge_method: linear
dtype: bfloat16
""")
    assert config.all_models() == ["sft1", "sft2", "dpo"]
    assert tensor_settings(config, "lm_head.weight") == {"weight": [5.0, 5.0, 1.0], "normalize": True}


def test_the_first_filter_that_is_in_the_name_counts(load):
    config = load(linear([{"filter": "mlp", "value": 2}, {"filter": "*", "value": 3}, {"value": 4}], 1))
    assert tensor_settings(config, "model.layers.0.mlp.up_proj.weight")["weight"] == [2.0, 1.0]
    assert tensor_settings(config, "model.norm.weight")["weight"] == [3.0, 1.0]


def test_a_models_own_value_comes_first_and_no_match_falls_through(load):
    config = load(linear({"filter": "mlp", "value": 2}, "1e-1", parameters={"weight": [{"value": 9}]}))
    assert tensor_settings(config, "mlp.weight")["weight"] == [2.0, 0.1]
    assert tensor_settings(config, "norm.weight")["weight"] == [9.0, 0.1]


@pytest.mark.parametrize(("depth", "wanted"), [(0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 0.6), (1, 0.2)])
def test_lists_are_spread_over_the_layers(load, depth, wanted):
    config = load(linear([0, 1, 0.2], 1))
    assert has_gradient(config)
    assert tensor_settings(config, "x", depth)["weight"][0] == pytest.approx(wanted)


def test_lists_within_filters(load):
    config = load(linear([{"filter": "attn", "value": [0, 1]}, {"value": 0.5}], 1))
    assert has_gradient(config)
    assert tensor_settings(config, "attn", 0.75)["weight"][0] == 0.75
    assert tensor_settings(config, "mlp", 0.75)["weight"][0] == 0.5
    assert not has_gradient(load(linear([{"filter": "attn", "value": 1}, {"value": [0.5]}], [1])))


def test_defaults_are_mergekits(load):
    assert tensor_settings(load(ties()), "x") == {
        "weight": [1.0, 1.0],
        "density": [1.0, 1.0],
        "normalize": True,
        "rescale": False,
        "scale": 1.0,
    }
    dare = tensor_settings(load(ties(merge_method="dare_ties")), "x")
    assert (dare["normalize"], dare["rescale"]) == (False, True)
    assert not tensor_settings(load(ties(merge_method="task_arithmetic")), "x")["normalize"]
    assert tensor_settings(load(ties(parameters={"weight": 1, "int8_mask": True, "lambda": 2})), "x")["scale"] == 2.0


def test_the_base_model_has_no_weight_where_changes_are_counted_from_it(load):
    models = [{"model": name, "parameters": {"weight": 2}} for name in ("a", "base", "b")]
    assert len(tensor_settings(load(ties(models=models)), "x")["weight"]) == 2
    assert len(tensor_settings(load(linear(1, 2, base_model="m0")), "x")["weight"]) == 2


BAD = {
    "unknown key": ({**linear(1), "dtyp": "bfloat16"}, "unknown key dtyp; did you mean dtype?"),
    "unknown key of a model": (
        {"merge_method": "linear", "models": [{"model": "a", "paramters": {}}]},
        "unknown key paramters; did you mean parameters?",
    ),
    "unknown parameter": (linear(1, parameters={"weigth": 1}), "no parameter weigth; did you mean weight?"),
    "parameter of another method": (linear(1, parameters={"density": 1}), "linear has no parameter density"),
    "unknown key of a filter": (linear([{"filtr": "mlp", "value": 1}]), "unknown key filtr"),
    "filter without a value": (linear([{"filter": "mlp"}]), "no value"),
    "values beside filters": (linear([{"filter": "mlp", "value": 1}, 2]), "mixes values and filters"),
    "empty list": (linear([]), "empty list"),
    "text for a number": (linear("much"), "expected a number, found 'much'"),
    "truth for a number": (linear(True), "expected a number, found True"),
    "infinity": (linear(float("inf")), "expected a number"),
    "number for a truth": (linear(1, parameters={"normalize": 1}), "expected true or false, found 1"),
    "density above 1": (ties(parameters={"weight": 1, "density": 1.5}), "expected 0 … 1, found 1.5"),
    "normalize of one model": (
        {"merge_method": "linear", "models": [{"model": "a", "parameters": {"normalize": True}}]},
        "one value for all models",
    ),
    "unknown method": ({**linear(1), "merge_method": "average"}, "merge_method"),
    "unknown dtype": ({**linear(1), "dtype": "bf16"}, "dtype"),
    "no models": ({"merge_method": "linear", "models": []}, r"at least 1 model\(s\), base_model included; 0 named"),
    "no base": ({k: v for k, v in ties().items() if k != "base_model"}, "add base_model: PATH"),
    "three for slerp": (ties(merge_method="slerp", parameters={"t": 0.5}), r"slerp merges 2 model\(s\)"),
    "two for model_stock": (
        {"merge_method": "model_stock", "base_model": "a", "models": [{"model": "b"}]},
        r"model_stock merges at least 3 model\(s\)",
    ),
    "a model twice": ({**linear(), "models": [{"model": "a"}, {"model": "a"}]}, "a is listed twice"),
    "slices": ({"merge_method": "linear", "slices": []}, "unknown key slices"),
    "no mapping": ("- a\n", "expected `key: value`"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(load, case):
    raw, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        load(raw)


def test_a_weight_that_no_filter_gives_is_named(load):
    config = load(linear({"filter": "mlp", "value": 1}, 1))
    with pytest.raises(ValueError, match="no weight of m0 for norm.weight"):
        tensor_settings(config, "norm.weight")


def test_weights_that_sum_to_zero_are_refused(load):
    with pytest.raises(ValueError, match="weights sum to 0"):
        tensor_settings(load(linear(1, -1)), "x")
    assert tensor_settings(load(linear(1, -1, parameters={"normalize": False})), "x")["weight"] == [1.0, -1.0]


def test_paths_may_start_from_a_folder() -> None:
    models = (MergeModel("sft", {"weight": 5}), MergeModel("/elsewhere/dpo"))
    moved = MergeConfig("task_arithmetic", models, base_model="sft").below(Path("runs/demo"))
    assert moved.all_models() == ["runs/demo/sft", "/elsewhere/dpo"]
    assert moved.base_model == "runs/demo/sft"
    assert moved.models[0].parameters == {"weight": 5}
