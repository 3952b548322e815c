"""The language-model loop in one process: it learns, stops cleanly, and resumes to the last bit."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import pytest

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.store import complete_checkpoints
from megatron_aqaa.config import load_config
from megatron_aqaa.training import train as train_module
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.lm_state import new_state
from megatron_aqaa.training.train import train
from megatron_aqaa.vocabulary import Vocabulary
from tests.training.tiny_run import TEXT_VOCABULARY, VOCABULARY, logged, stored, tiny_config


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight")
    train(tiny_config(data, run, keep_checkpoints=9))
    return run


def test_log_has_every_step_and_modality(straight: Path) -> None:
    records = logged(straight)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert set(records[0]) == {
        "step", "loss", "loss_text", "loss_linguistic", "loss_semantic", "grad_norm", "learning_rate",
        "targets_text", "targets_linguistic", "targets_semantic", "skipped_steps",
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


@pytest.fixture(scope="module")
def text_model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a model whose vocabulary ends with the text ids."""
    config = tiny_config(data, tmp_path_factory.mktemp("text"))
    platform.initialize(config.parallel, seed=9)
    new_state(config.model, TEXT_VOCABULARY, config.parallel, config.optimizer, steps=4).save(config.run, keep=1)
    platform.shutdown()
    return config.run


def test_a_text_model_is_grown_and_taught_audio_alone(data: Path, text_model: Path, tmp_path: Path) -> None:
    train(tiny_config(data, tmp_path, init_from=text_model, grow_vocabulary=True, frozen=["backbone", "text_rows"]))
    before, after = stored(text_model), stored(tmp_path)
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert (before[name].shape[0], after[name].shape[0]) == (256, 5376)
        assert after[name][:160].equal(before[name][:160])
        assert after[name][160 : VOCABULARY.size].any(1).all()
        assert not after[name][VOCABULARY.size :].any()
    name = "decoder.layers.mlp.linear_fc1.weight"
    assert after[name].equal(before[name])
    assert logged(tmp_path)[-1]["loss"] < logged(tmp_path)[0]["loss"]


def test_small_tables_that_a_text_model_lacks_start_at_zero(data: Path, text_model: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, init_from=text_model, grow_vocabulary=True, steps=3)
    with_tables = {"codebook_type_embedding": True, "group_position_embedding": True}
    train(config)
    train(dataclasses.replace(config, run=tmp_path / "tables", model=dataclasses.replace(config.model, **with_tables)))
    without, changed = logged(tmp_path), logged(tmp_path / "tables")
    assert changed[0]["loss"] == without[0]["loss"]
    assert changed[2]["loss"] != without[2]["loss"]  # warm-up: the first step has a rate of zero


def test_a_smaller_vocabulary_is_refused_with_the_remedy(data: Path, text_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 256 rows there, 5376 in this model.*grow_vocabulary: true"):
        train(tiny_config(data, tmp_path, init_from=text_model))
    with pytest.raises(ValueError, match=r"grow_vocabulary needs training\.init_from"):
        tiny_config(data, tmp_path, grow_vocabulary=True)


def test_audio_rows_that_have_learned_are_not_drawn_anew(data: Path, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 5282 ids, but vocabulary.text_size = 160"):
        train(tiny_config(data, tmp_path, init_from=straight, grow_vocabulary=True))


def test_a_text_model_with_other_text_ids_is_not_grown(data: Path, text_model: Path, tmp_path: Path) -> None:
    Vocabulary.for_text(200).save(tmp_path / "other.yaml")
    config = tiny_config(data, tmp_path, init_from=text_model, grow_vocabulary=True)
    with pytest.raises(ValueError, match="holds 160 ids, but vocabulary.text_size = 200"):
        train(dataclasses.replace(config, vocabulary=tmp_path / "other.yaml"))


def test_ids_that_mean_something_else_are_refused(data: Path, straight: Path, tmp_path: Path) -> None:
    dataclasses.replace(VOCABULARY, linguistic_size=1000, semantic_size=4120).save(tmp_path / "other.yaml")
    config = tiny_config(data, tmp_path, init_from=straight)
    with pytest.raises(ValueError, match="linguistic_size = 1024 there, 1000 here; semantic_size = 4096 there, 4120"):
        train(dataclasses.replace(config, vocabulary=tmp_path / "other.yaml"))


def test_other_frozen_parts_cannot_be_resumed(data: Path, straight: Path, tmp_path: Path) -> None:
    last = complete_checkpoints(straight)[-1]
    shutil.copytree(last, tmp_path / "checkpoints" / last.name)
    with pytest.raises(ValueError, match=r"no parameter group.*training\.frozen was another"):
        train(tiny_config(data, tmp_path, frozen=["text_rows"], steps=6))
