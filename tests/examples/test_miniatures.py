"""Every recipe in miniature: its file and settings, but tiny, two steps in one process, each from the one before."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.store import require_checkpoint
from megatron_aqaa.config import load_config
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from megatron_aqaa.training.dpo.train import train_dpo
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.lm_state import new_state
from megatron_aqaa.training.train import train
from megatron_aqaa.vocabulary import Vocabulary
from tests.examples.recipes import (
    FOLDERS,
    ROOT,
    RUNS,
    STAGES,
    VARIANTS,
    WITHOUT_TRANSFORMER_ENGINE,
    differences,
    recipe,
)
from tests.training.dpo.tiny_pairs import VOCABULARY, document, groups, logged, write_documents, write_pairs

SIZES = {
    "model.num_layers": 2,
    "model.hidden_size": 32,
    "model.ffn_hidden_size": 64,
    "model.num_attention_heads": 4,
    "model.num_query_groups": 2,
    "model.kv_channels": 8,
    "data.sequence_length": 96,
    "training.steps": 2,
    "training.global_batch_size": 4,
    "optimizer.warmup_steps": 1,
}
ONE_PROCESS = {
    "parallel.tensor_model_parallel_size": 1,
    "parallel.sequence_parallel": "false",
    "parallel.pipeline_model_parallel_size": 1,
    "parallel.virtual_pipeline_model_parallel_size": "null",
    "parallel.pipeline_model_parallel_layout": "null",
    "parallel.context_parallel_size": 1,
}
PLACES = ("run", "vocabulary", "data.directory", "data.cache_directory", "training.init_from")


def miniature(folder: str, name: str, root: Path) -> TrainConfig:
    """The recipe with everything below `runs/<folder>` taken to `root`, and with tiny sizes."""
    full = recipe(folder, name)
    moved = {place: _value(full, place) for place in PLACES}
    places = {place: root / Path(path).relative_to(f"runs/{folder}") for place, path in moved.items() if path}
    changes = {**SIZES, **ONE_PROCESS, **places}
    return recipe(folder, name, *(f"{key}={value}" for key, value in changes.items()), *WITHOUT_TRANSFORMER_ENGINE)


def _value(config: object, dotted: str) -> Path | None:
    for part in dotted.split("."):
        config = getattr(config, part)
    return config  # type: ignore[return-value]


def write_data(root: Path) -> None:
    """All data sets that the recipes name, and the vocabulary."""
    random = np.random.default_rng(0)
    for folder, names in {
        "pretraining/train": ("continuation", "interleaved", "asr", "tts", "text"),
        "sft": ("sft1", "sft2"),
    }.items():
        (root / "data" / folder).mkdir(parents=True)
        for name in names:
            answers = [[*random.integers(10, 60, 4).tolist(), *groups(random, 2), VOCABULARY.eot] for _ in range(40)]
            documents = [document([VOCABULARY.bos, 11, 12], answer) for answer in answers]
            write_documents(root / "data" / folder / name, documents, kind="sft")
    (root / "data/preference").mkdir()
    write_pairs(root / "data/preference/train", 40)
    (root / "step1").mkdir()
    VOCABULARY.save(root / "step1/vocabulary.yaml")


def write_start(config: TrainConfig, vocabulary: Vocabulary, run: Path) -> None:
    """A checkpoint of random weights, in the place of an imported one."""
    platform.initialize(config.parallel, seed=3)
    new_state(config.model, vocabulary, config.parallel, config.optimizer, steps=4).save(run, keep=1)
    platform.shutdown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of recipes → folder in which all of them have run."""
    roots = {}
    for folder in FOLDERS:
        root = roots[folder] = tmp_path_factory.mktemp(folder)
        write_data(root)
        write_start(miniature(folder, "pretrain_stage1", root), VOCABULARY, root / "step1")
        for name in (*STAGES, *VARIANTS[folder]):
            config = miniature(folder, name, root)
            train_dpo(config) if isinstance(config, DPOTrainConfig) else train(config)
    return roots


@pytest.mark.parametrize(("folder", "name"), RUNS)
def test_it_trains_with_the_settings_of_the_recipe(folder: str, name: str, trained: dict[str, Path]) -> None:
    records = [record for record in logged(trained[folder] / name) if "loss" in record]
    assert [record["step"] for record in records] == [1, 2]
    assert all(math.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in records)
    assert require_checkpoint(trained[folder] / name).name == "step_00000002"
    full = recipe(folder, name)
    kept = load_config(type(full), trained[folder] / name / "config.yaml")
    allowed = {*SIZES, *ONE_PROCESS, *PLACES, *(override.split("=")[0] for override in WITHOUT_TRANSFORMER_ENGINE)}
    assert differences(full, kept) <= allowed
    assert kept.parallel.overlap_grad_reduce
    assert kept.parallel.overlap_param_gather


@pytest.mark.parametrize("folder", FOLDERS)
def test_dpo_starts_at_its_reference(folder: str, trained: dict[str, Path]) -> None:
    assert logged(trained[folder] / "dpo")[0]["preference_loss"] == pytest.approx(math.log(2), abs=0.02)


def test_stage_1_takes_a_text_model_as_the_readme_says(trained: dict[str, Path], tmp_path: Path) -> None:
    text = Vocabulary(text_size=60, linguistic_size=0, semantic_size=0, size=60, audio_start=5, audio_end=6)
    config = miniature("aqaa_3b", "pretrain_stage1", trained["aqaa_3b"])
    write_start(config, text, tmp_path / "text")
    loop = dataclasses.replace(config.training, init_from=tmp_path / "text", grow_vocabulary=True)
    train(dataclasses.replace(config, run=tmp_path / "grown", training=loop))
    assert len(logged(tmp_path / "grown")) == 2


@pytest.mark.slow
def test_the_merge_of_the_miniatures(trained: dict[str, Path], tmp_path: Path) -> None:
    command = ["tools/merge_checkpoints.py", "examples/aqaa_3b/merge.yaml", str(tmp_path / "merged")]
    done = subprocess.run(
        [sys.executable, *command, "--root", str(trained["aqaa_3b"])], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert require_checkpoint(tmp_path / "merged")
