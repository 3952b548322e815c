"""Strict configuration: every mistake is an error that says what to change."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from megatron_aqaa.config import load_config, save_config


@dataclass(frozen=True)
class Inner:
    learning_rate: float
    steps: int = 3


@dataclass(frozen=True)
class Outer:
    inner: Inner
    path: Path = Path("x")
    weights: dict[str, float] = field(default_factory=dict)
    extra: Inner | None = None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("inner: {learning_rate: 1e-3}\nweights: {a: 1}\n")
    return path


def test_values_are_converted(file: Path) -> None:
    assert load_config(Outer, file) == Outer(Inner(0.001), weights={"a": 1.0})


def test_overrides_reach_nested_and_optional_sections(file: Path) -> None:
    config = load_config(Outer, file, ["inner.steps=7", "extra.learning_rate=2", "path=/tmp"])
    assert config.inner.steps == 7
    assert config.extra == Inner(2.0)
    assert config.path == Path("/tmp")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.learning_rat=1", "unknown key inner.learning_rat; did you mean inner.learning_rate?"),
        ("weight={}", "unknown key weight; did you mean weights?"),
        ("inner.steps=many", "inner.steps: .*valid integer.*found 'many'"),
        ("inner.steps", "expected section.field=value"),
        ("inner.learning_rate.x=1", "'learning_rate' is a value, not a section"),
        ("extra.steps=1", r"missing key extra.learning_rate \(float\)"),
    ],
)
def test_mistakes_name_the_key(file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Outer, file, [override])


def test_missing_section(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("path: y\n")
    with pytest.raises(ValueError, match=r"run.yaml: missing key inner \(Inner\)"):
        load_config(Outer, tmp_path / "run.yaml")


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00"])
def test_unreadable_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ValueError, match="run.yaml"):
        load_config(Outer, tmp_path / "run.yaml")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such configuration file"):
        load_config(Outer, tmp_path / "none.yaml")


def test_saved_file_reads_back_equal(file: Path, tmp_path: Path) -> None:
    config = load_config(Outer, file, ["extra.learning_rate=2"])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(Outer, tmp_path / "saved.yaml") == config
