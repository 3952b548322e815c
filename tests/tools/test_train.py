"""`tools/train.py` as a user meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_aqaa.config import save_config
from tests.training.tiny_run import tiny_config, write_data


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_data(folder / "data")
    save_config(tiny_config(folder / "data", folder / "run"), folder / "run.yaml")
    return folder / "run.yaml"


def train(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "tools/train.py", *words], capture_output=True, text=True, timeout=120)


def test_trains_and_prints_progress(file: Path) -> None:
    done = train(str(file))
    assert done.returncode == 0, done.stderr
    assert "4/4 loss" in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=1", "did you mean optimizer.learning_rate?"),
        ("vocabulary=nowhere.yaml", "nowhere.yaml: no such vocabulary file"),
        ("training.init_from=nowhere", "nowhere: no complete checkpoint here"),
        ("parallel.tensor_model_parallel_size=2", "1 processes cannot hold copies of a model over 2"),
        ("data.train={nowhere: 1}", "nowhere"),
    ],
)
def test_mistakes_are_named_with_code_2(file: Path, tmp_path: Path, override: str, message: str) -> None:
    failed = train(str(file), f"run={tmp_path}", override)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr


def test_help_has_an_example() -> None:
    assert "torchrun --nproc-per-node 2 tools/train.py" in train("--help").stdout
