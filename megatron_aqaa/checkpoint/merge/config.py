"""What is merged with what, and how: mergekit's YAML, read strictly.

A model's own parameters come before those of the whole merge, and these before the defaults (`parameters`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from megatron_aqaa.checkpoint.merge.parameters import RULES, check_parameter, is_spread, resolve
from megatron_aqaa.config import load_config, parse_config

Method = Literal["linear", "task_arithmetic", "slerp", "ties", "dare_linear", "dare_ties", "model_stock"]
DType = Literal["bfloat16", "float16", "float32", "float64"]


@dataclass(frozen=True)
class MergeModel:
    """One of the models.

    Attributes:
        model: Hugging Face directory with safetensors, `torch_dist` checkpoint, or run (its newest checkpoint).
        parameters: of this model.
    """

    model: str
    parameters: dict[str, Any] = field(default_factory=dict)


def _strict_model(raw: Any) -> MergeModel:
    """Pydantic alone would pass over unknown keys here."""
    if isinstance(raw, MergeModel):
        return raw
    if not isinstance(raw, dict):
        raise ValueError("expected `model: PATH`")
    return parse_config(MergeModel, raw, "model")


@dataclass(frozen=True)
class MergeConfig:
    """mergekit's YAML. Its `slices`, `modules`, `tokenizer`, `tokenizer_source`, `chat_template` are not known here.

    Attributes:
        merge_method: function of `methods`.
        models: the models; the base model may be among them.
        base_model: what changes are counted from (all methods but `linear`).
        dtype: of the result, unless `out_dtype` says otherwise. Sums are float32 in any case (float64 if this or a
            model is float64). None: that to which the models' dtypes promote.
        out_dtype: of the result.
        parameters: of all models.
    """

    merge_method: Method
    models: tuple[Annotated[MergeModel, pydantic.BeforeValidator(_strict_model)], ...]
    base_model: str | None = None
    dtype: DType | None = None
    out_dtype: DType | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    def below(self, root: Path) -> MergeConfig:
        """The same merge of models whose paths start from `root`."""
        models = tuple(replace(entry, model=str(root / entry.model)) for entry in self.models)
        base = None if self.base_model is None else str(root / self.base_model)
        return replace(self, models=models, base_model=base)

    def all_models(self) -> list[str]:
        """Paths of all models in order; a base model that is not among them comes last, as in mergekit."""
        paths = [entry.model for entry in self.models]
        return paths if self.base_model is None or self.base_model in paths else [*paths, self.base_model]


def load_merge_config(path: str | Path) -> MergeConfig:
    """Read and check a configuration.

    Raises:
        ValueError: unknown key or parameter (with the nearest one), a value of the wrong kind, a model named twice,
            too few or too many models, no base model where the method needs one.
    """
    config = load_config(MergeConfig, path)
    _check_models(config, str(path))
    for where, parameters in _parameter_places(config):
        for name, setting in parameters.items():
            check_parameter(config.merge_method, name, setting, f"{path}: {where}.{name}")
    return config


def _parameter_places(config: MergeConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "parameters", config.parameters
    for index, entry in enumerate(config.models):
        yield f"models[{index}].parameters", entry.parameters


def _check_models(config: MergeConfig, source: str) -> None:
    rules, paths = RULES[config.merge_method], config.all_models()
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"{source}: {twice} is listed twice; give it the sum of the weights once")
    if rules.needs_base and config.base_model is None:
        raise ValueError(f"{source}: {config.merge_method} counts changes from a base model; add base_model: PATH")
    fewest, most = rules.num_models
    if len(paths) < fewest or (most is not None and len(paths) > most):
        wanted = f"{fewest}" if most == fewest else f"at least {fewest}"
        raise ValueError(
            f"{source}: {config.merge_method} merges {wanted} model(s), base_model included; {len(paths)} named"
        )


def tensor_settings(config: MergeConfig, tensor: str, depth: float = 0.0) -> dict[str, Any]:
    """Arguments of the merge method for one tensor.

    Args:
        config: that was checked when it was loaded.
        tensor: its name.
        depth: place of its layer, 0 (first, and tensors outside the layers) to 1 (last).

    Raises:
        ValueError: a parameter that must be given is not, or weights that are to be normalized sum to 0.
    """
    rules = RULES[config.merge_method]
    own = {entry.model: entry.parameters for entry in config.models}
    models = [path for path in config.all_models() if not (rules.needs_base and path == config.base_model)]
    settings: dict[str, Any] = {}
    for name, parameter in rules.parameters.items():
        if parameter.argument is None:
            continue
        values = [
            resolve(name, parameter, (own.get(path, {}), config.parameters), tensor, depth, path) for path in models
        ]
        settings[parameter.argument] = values if parameter.per_model else values[0]
    if config.merge_method == "linear" and settings["normalize"] and sum(settings["weight"]) == 0.0:
        raise ValueError(f"{tensor}: the weights sum to 0; set normalize: false, or change them")
    return settings


def has_gradient(config: MergeConfig) -> bool:
    """Whether a parameter is spread over the layers."""
    return any(is_spread(setting) for _, parameters in _parameter_places(config) for setting in parameters.values())
