"""The recipes: where they lie, and the record that each one's tool loads it with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron_aqaa.config import load_config
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from megatron_aqaa.training.lm_config import TrainConfig

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("aqaa_3b", "aqaa_130b")
STAGES = ("pretrain_stage1", "pretrain_stage2", "pretrain_stage3", "sft1", "sft2", "dpo")
VARIANTS = {"aqaa_3b": (), "aqaa_130b": ("pretrain_stage1_fp8", "pretrain_stage3_32k")}
RUNS = [(folder, name) for folder in FOLDERS for name in (*STAGES, *VARIANTS[folder])]

WITHOUT_TRANSFORMER_ENGINE = ("model.fp8=null", "parallel.tp_comm_overlap=false")
"""Overrides for what no CPU can do."""


def path_of(folder: str, name: str) -> Path:
    return ROOT / "examples" / folder / f"{name}.yaml"


def recipe(folder: str, name: str, *overrides: str) -> TrainConfig:
    """A run, loaded as its tool does."""
    return load_config(DPOTrainConfig if name == "dpo" else TrainConfig, path_of(folder, name), overrides)


def on_cpu(folder: str, name: str) -> tuple[TrainConfig, ParallelConfig]:
    """A run without what needs Transformer Engine, and its layout."""
    config = recipe(folder, name, *WITHOUT_TRANSFORMER_ENGINE)
    return config, config.parallel


def data_parallel_sizes(folder: str, name: str) -> list[int]:
    """Data-parallel sizes that the recipe is meant for, see the READMEs."""
    largest = {"sft1": 16, "sft2": 16, "dpo": 8, "pretrain_stage3_32k": 32}.get(name, 128)
    return [2**power for power in range(4 if folder == "aqaa_3b" else largest.bit_length())]


def differences(left: object, right: object, prefix: str = "") -> set[str]:
    """Dotted names of the settings that two records of one class do not share."""
    found: set[str] = set()
    for field in dataclasses.fields(left):  # type: ignore[arg-type]
        mine, theirs = getattr(left, field.name), getattr(right, field.name)
        if dataclasses.is_dataclass(mine) and dataclasses.is_dataclass(theirs):
            found |= differences(mine, theirs, f"{prefix}{field.name}.")
        elif mine != theirs:
            found.add(prefix + field.name)
    return found
