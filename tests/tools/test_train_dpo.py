"""`tools/train_dpo.py` as a user meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_aqaa.config import load_config, save_config
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from tests.training.dpo.tiny_pairs import pair_config, write_documents, write_start


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    write_start(folder)
    write_documents(folder / "chat", [([1, 20, 3], [0, 1, 1])] * 2, kind="chat")
    save_config(pair_config(folder, "run"), folder / "run.yaml")
    return folder / "run.yaml"


def train(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "tools/train_dpo.py", *words], capture_output=True, text=True, timeout=120)


def test_trains_and_prints_progress(file: Path) -> None:
    done = train(str(file))
    assert done.returncode == 0, done.stderr
    assert "train: 40 total, 40 used, 0 identical, 0 without_targets pairs" in done.stderr
    assert "4/4 loss" in done.stderr
    assert "margin" in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dpo.bet=1", "did you mean dpo.beta?"),
        ("dpo.loss=kto", "dpo.loss: Input should be 'sigmoid', 'cdpo'"),
        ("dpo.label_smoothing=0.1", "label_smoothing = 0.1 has no effect on sigmoid"),
        ("training.init_from=nowhere", "nowhere: no complete checkpoint here"),
        ("dpo.reference_checkpoint=nowhere", "nowhere: no complete checkpoint here"),
        ("data.train={chat: 1}", "chat: is no preference data set (kind 'chat'"),
        ("data.sequence_length=8", "pairs do not fit data.sequence_length = 8. Set it to at least"),
    ],
)
def test_mistakes_are_named_with_code_2(file: Path, tmp_path: Path, override: str, message: str) -> None:
    failed = train(str(file), f"run={tmp_path}", override)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr


def test_help_has_an_example() -> None:
    assert "torchrun --nproc-per-node 8 tools/train_dpo.py" in train("--help").stdout


def test_the_example_is_a_valid_run() -> None:
    assert load_config(DPOTrainConfig, "examples/tiny_cpu/dpo.yaml").dpo.loss_mask == "text"
