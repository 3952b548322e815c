"""What each method takes, and what a parameter's setting comes to for one tensor.

A setting is a number, a list of numbers that is spread over the layers from first to last, or a list of
`{filter, value}`, of which the first whose filter is part of the tensor's name counts (none, or `*`: any tensor). As in
mergekit 0.1.5 (`mergekit/config.py`, `mergekit/parameter_resolver.py`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_aqaa.checkpoint.merge import methods


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method.

    Attributes:
        argument: name in the function's signature, None if it changes no result.
        kind: float or bool.
        per_model: each model has its own.
        default: None if it must be given.
        largest: where values above (or below 0) mean nothing.
    """

    argument: str | None
    kind: type
    per_model: bool = False
    default: float | bool | None = None
    largest: float | None = None


@dataclass(frozen=True)
class MethodRules:
    """What a method takes.

    Attributes:
        parameters: by mergekit's names.
        needs_base: counts changes from a base model.
        elementwise: an element of the result depends on no other, so fused and sharded tensors can be merged.
        num_models: fewest and most models, the base included.
    """

    parameters: Mapping[str, Parameter]
    needs_base: bool = True
    elementwise: bool = False
    num_models: tuple[int, int | None] = (2, None)


def _arithmetic(normalize: bool, rescale: bool | None = None) -> dict[str, Parameter]:
    rules = {
        "weight": Parameter("weight", float, per_model=True),
        "normalize": Parameter("normalize", bool, default=normalize),
        "lambda": Parameter("scale", float, default=1.0),
        "int8_mask": Parameter(None, bool, default=False),  # saves mergekit memory; many configurations carry it
    }
    if rescale is not None:
        rules["density"] = Parameter("density", float, per_model=True, default=1.0, largest=1.0)
        rules["rescale"] = Parameter("rescale", bool, default=rescale)
    return rules


RULES: dict[str, MethodRules] = {
    "linear": MethodRules(
        {
            "weight": Parameter("weight", float, per_model=True),
            "normalize": Parameter("normalize", bool, default=True),
        },
        needs_base=False,
        elementwise=True,
        num_models=(1, None),
    ),
    "task_arithmetic": MethodRules(_arithmetic(normalize=False), elementwise=True),
    "slerp": MethodRules({"t": Parameter("t", float)}, num_models=(2, 2)),
    "ties": MethodRules(_arithmetic(normalize=True, rescale=False)),
    "dare_linear": MethodRules(_arithmetic(normalize=False, rescale=True)),
    "dare_ties": MethodRules(_arithmetic(normalize=False, rescale=True)),
    "model_stock": MethodRules({}, num_models=(3, None)),
}
METHODS = {name: getattr(methods, name) for name in RULES}


def check_parameter(method: str, name: str, setting: Any, where: str) -> None:
    """Raise ValueError unless the method has the parameter and the setting is one of its kind.

    Args:
        method: of the merge.
        name: of the parameter.
        setting: as it stands in the file.
        where: file and place in it, for the message.
    """
    known = RULES[method].parameters
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"it has: {', '.join(known) or 'none'}"
        raise ValueError(f"{where}: {method} has no parameter {name}; {hint}")
    if known[name].per_model is False and where.rpartition(": ")[2].startswith("models["):
        raise ValueError(f"{where}: one value for all models; move it to the parameters at the top")
    _check_setting(setting, known[name], where)


def _check_setting(setting: Any, parameter: Parameter, where: str) -> None:
    entries = setting if isinstance(setting, list) else [setting]
    if not entries:
        raise ValueError(f"{where}: an empty list; give a value")
    if len({isinstance(entry, dict) for entry in entries}) > 1:
        raise ValueError(f"{where}: mixes values and filters; give the last one as `value: …` without a filter")
    for entry in entries:
        if not isinstance(entry, dict):
            _convert(entry, parameter, where)
            continue
        unknown = next((key for key in entry if key not in ("filter", "value")), None)
        if unknown is not None or "value" not in entry:
            problem = f"unknown key {unknown}" if unknown is not None else "no value"
            raise ValueError(f"{where}: {problem}; write `- filter: PART_OF_NAME` and `value: NUMBER` below it")
        if isinstance(entry["value"], dict) or not isinstance(entry.get("filter"), str | None):
            raise ValueError(f"{where}: {entry}: the value is a number or a list of them, the filter a text")
        _check_setting(entry["value"], parameter, where)


def _convert(value: Any, parameter: Parameter, where: str) -> float | bool:
    """YAML reads 1e-3 as a text; a number all the same."""
    if parameter.kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{where}: expected true or false, found {value!r}")
        return value
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a number, found {value!r}")
    if parameter.largest is not None and not 0.0 <= number <= parameter.largest:
        raise ValueError(f"{where}: expected 0 … {parameter.largest:g}, found {value!r}")
    return number


def resolve(
    name: str, parameter: Parameter, scopes: Iterable[dict[str, Any]], tensor: str, depth: float, model: str
) -> float | bool:
    """What a parameter comes to for one tensor of one model.

    Args:
        name: of the parameter.
        parameter: its kind and default.
        scopes: settings by name; the first that says something about the tensor counts.
        tensor: its name.
        depth: place of its layer, 0 (first) to 1 (last).
        model: for the message.

    Raises:
        ValueError: no scope says anything, and there is no default.
    """
    for scope in scopes:
        value = _evaluate(scope[name], parameter, tensor, depth) if name in scope else None
        if value is not None:
            return value
    if parameter.default is None:
        whose = f" of {model}" if parameter.per_model else ""
        raise ValueError(f"no {name}{whose} for {tensor}; give one, or a last `value` without a filter")
    return parameter.default


def _evaluate(setting: Any, parameter: Parameter, tensor: str, depth: float) -> float | bool | None:
    entries = setting if isinstance(setting, list) else [setting]
    if isinstance(entries[0], dict):
        matching = (entry for entry in entries if entry.get("filter") in (None, "*") or entry["filter"] in tensor)
        chosen = next(matching, None)
        return None if chosen is None else _evaluate(chosen["value"], parameter, tensor, depth)
    values = [_convert(entry, parameter, tensor) for entry in entries]
    place = depth * (len(values) - 1)
    low = int(place)
    if parameter.kind is bool:
        return values[low]
    high = min(low + 1, len(values) - 1)
    return (1.0 - (place - low)) * values[low] + (place - low) * values[high]


def is_spread(setting: Any) -> bool:
    """Whether a setting differs from layer to layer."""
    entries = setting if isinstance(setting, list) else [setting]
    values = [entry["value"] if isinstance(entry, dict) else entry for entry in entries]
    plain = not isinstance(entries[0], dict)
    return (plain and len(values) > 1) or any(isinstance(value, list) and len(value) > 1 for value in values)
