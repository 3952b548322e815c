"""The README's map from Megatron-LM's flags covers the settings of a run, all of them and no others."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from typing import Any

from megatron_aqaa.training.lm_config import TrainConfig
from tests.readme import quoted, table


def keys(cls: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a configuration's leaves."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from keys(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def rows() -> list[list[str]]:
    return table("Megatron-LM", "here", "difference")


def test_the_map_has_every_key_of_a_run_once() -> None:
    mapped = [key for _, ours, _ in rows() for key in quoted(ours)]
    assert sorted(mapped) == sorted(keys(TrainConfig))


def test_flags_look_like_flags_and_stand_once() -> None:
    flags = [flag for theirs, _, _ in rows() for flag in quoted(theirs)]
    assert all(re.fullmatch(r"--[a-z0-9]+(-[a-z0-9]+)*", flag) for flag in flags)
    assert len(set(flags)) == len(flags)
    assert len(flags) > 30


def test_keys_without_a_flag_say_what_they_are() -> None:
    for theirs, ours, difference in rows():
        assert quoted(theirs) or difference, f"{ours}: neither a flag nor a word on it"
