"""One YAML file → one frozen dataclass, strictly, with dotted overrides.

The dataclasses sit beside what they configure; this module only fills them in. Unknown and missing keys are
errors that name the nearest key. Values are checked and converted by pydantic (ints, floats, paths, literals,
optional and nested records, tuples, mappings).
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

T = TypeVar("T")


def load_config(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file into `cls`.

    Args:
        cls: a frozen dataclass; nested dataclasses are sections.
        path: the YAML file.
        overrides: `section.field=value` strings, values in YAML syntax, applied in order.

    Raises:
        ValueError: file not found, not YAML, unknown or missing key, value of the wrong type, override without "=".
    """
    try:
        raw = yaml.safe_load(Path(path).read_text()) or {}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected `key: value` lines, found a {type(raw).__name__}")
    for override in overrides:
        _apply_override(raw, override)
    return parse_config(cls, raw, str(path))


def parse_config(cls: type[T], raw: dict[str, Any], source: str = "configuration") -> T:
    """Fill in `cls` from plain data; `source` names the origin in error messages."""
    _check_keys(cls, raw, source, "")
    try:
        return pydantic.TypeAdapter(cls).validate_python(raw)
    except pydantic.ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, e['loc'])) or cls.__name__}: {e['msg']}, found {e['input']!r}"
            for e in error.errors()
        ]
        raise ValueError(f"{source}: {len(problems)} wrong value(s)\n" + "\n".join(problems)) from None


def save_config(config: Any, path: str | Path) -> None:
    """Write a configuration as YAML that `load_config` reads back to an equal object."""
    Path(path).write_text(yaml.safe_dump(_to_plain(dataclasses.asdict(config)), sort_keys=False))


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _apply_override(raw: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator:
        raise ValueError(f"override {override!r}: expected section.field=value")
    *sections, field = dotted.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ValueError(f"override {override!r}: {section!r} is a value, not a section")
    raw[field] = yaml.safe_load(text)


def _check_keys(cls: Any, raw: dict[str, Any], source: str, prefix: str) -> None:
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in raw:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.4)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known keys: {', '.join(fields)}"
            raise ValueError(f"{source}: unknown key {prefix}{key}; {hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in raw:
            raise ValueError(f"{source}: missing key {prefix}{name} ({_type_name(hints[name])})")
        section = _section_type(hints[name])
        if section is not None and isinstance(raw.get(name), dict):
            _check_keys(section, raw[name], source, f"{prefix}{name}.")


def _section_type(hint: Any) -> Any:
    """The dataclass inside `hint`, also within `X | None`, else None."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint))
