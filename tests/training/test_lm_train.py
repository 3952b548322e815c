"""The language-model loop in one process: it learns, stops cleanly, and resumes to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from megatron_aqaa.checkpoint.store import complete_checkpoints
from megatron_aqaa.config import load_config
from megatron_aqaa.training import train as train_module
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.train import train
from tests.training.tiny_run import tiny_config, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_data(directory)
    return directory


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight")
    train(tiny_config(data, run, keep_checkpoints=9))
    return run


def logged(run: Path) -> list[dict[str, float]]:
    """The log without what a clock put there."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in r.items() if key not in ("seconds", "tokens_per_second")} for r in records]


def test_log_has_every_step_and_modality(straight: Path) -> None:
    records = logged(straight)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert set(records[0]) == {
        "step", "loss", "loss_text", "loss_linguistic", "loss_semantic", "grad_norm", "learning_rate",
    }  # fmt: skip
    assert records[-1]["loss"] < records[0]["loss"]


def test_resume_is_exact_over_two_steps(data: Path, straight: Path, tmp_path: Path) -> None:
    """From the checkpoint after step 2, steps 3 and 4 give the same numbers to the last bit."""
    first = complete_checkpoints(straight)[0]
    shutil.copytree(first, tmp_path / "checkpoints" / first.name)
    train(tiny_config(data, tmp_path))
    assert logged(tmp_path) == logged(straight)[2:]


def test_signal_saves_and_the_same_command_continues(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(9))
    plain_step = train_module.train_step

    def step_with_signal(*arguments: object) -> object:
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return plain_step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train_module, "train_step", step_with_signal)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 3, saved"):
        train(tiny_config(data, tmp_path, save_interval=100))
    train(tiny_config(data, tmp_path, save_interval=100))
    assert logged(tmp_path) == logged(straight)


def test_incomplete_checkpoint_is_passed_over(data: Path, straight: Path, tmp_path: Path) -> None:
    for checkpoint in complete_checkpoints(straight):
        shutil.copytree(checkpoint, tmp_path / "checkpoints" / checkpoint.name)
    (tmp_path / "checkpoints" / "step_00000004" / "metadata.json").unlink()
    train(tiny_config(data, tmp_path))
    assert [record["step"] for record in logged(tmp_path)] == [3, 4]


def test_old_checkpoints_are_removed(data: Path, tmp_path: Path) -> None:
    train(tiny_config(data, tmp_path, save_interval=1, keep_checkpoints=2))
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000003", "step_00000004"]


def test_init_from_takes_weights_but_not_the_optimizer(data: Path, straight: Path, tmp_path: Path) -> None:
    train(tiny_config(data, tmp_path, init_from=str(straight), steps=2))
    first = logged(tmp_path)[0]
    assert first["step"] == 1
    assert first["loss"] < logged(straight)[0]["loss"]


def test_validation_is_logged_and_changes_nothing(data: Path, straight: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, validation_interval=2)
    object.__setattr__(config.data, "validation", (str(data / "documents"),))
    train(config)
    records = logged(tmp_path)
    assert [record for record in records if "loss" in record] == logged(straight)
    validated = [record for record in records if "validation_loss" in record]
    assert [record["step"] for record in validated] == [2, 4]
    assert validated[1]["validation_loss"] < validated[0]["validation_loss"]
    assert {"validation_loss_text", "validation_loss_linguistic", "validation_loss_semantic"} <= set(validated[0])


def test_settings_are_kept_beside_the_checkpoints(data: Path, straight: Path) -> None:
    assert load_config(TrainConfig, straight / "config.yaml") == tiny_config(data, straight, keep_checkpoints=9)


def test_batch_that_does_not_divide_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="global_batch_size = 5 must be a multiple"):
        train(tiny_config(data, tmp_path, global_batch_size=5))


def test_checkpoint_of_another_shape_is_refused(data: Path, straight: Path, tmp_path: Path) -> None:
    narrower = tiny_config(data, tmp_path, init_from=str(straight))
    object.__setattr__(narrower.model, "ffn_hidden_size", 32)
    with pytest.raises(ValueError, match="does not fit this model"):
        train(narrower)
