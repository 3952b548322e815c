"""`tools/gpu_check.py`: what it runs, and when it runs it again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tools" / "gpu_check.py")
gpu_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_check)

SOURCES = ("csrc/ops/rows.cu", "megatron_aqaa/ops/rows.py", "tests/ops/test_rows.py", "benchmarks/rows.py", "setup.py")


@pytest.mark.parametrize("changed", SOURCES)
def test_a_part_runs_again_when_what_it_depends_on_changes(tmp_path: Path, changed: str) -> None:
    for name in SOURCES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    before = gpu_check.sources_digest(tmp_path)
    (tmp_path / "benchmarks" / "results").mkdir()
    (tmp_path / "benchmarks" / "results" / "h200_ops.json").write_text("{}")
    assert gpu_check.sources_digest(tmp_path) == before
    (tmp_path / changed).write_text("after")
    assert gpu_check.sources_digest(tmp_path) != before


@pytest.mark.parametrize("part", sorted(gpu_check.BENCHMARKS))
def test_the_benchmarks_of_a_part_exist(part: str, tmp_path: Path) -> None:
    for _, script, *words in gpu_check.commands(part, tmp_path)[1:]:
        assert Path(script).exists()
        assert all(Path(script).with_name(f"{word}.py").exists() for word in words)
