"""SFT-1 → {SFT-2, DPO} → merge → export, as jobs that wait for each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from megatron_aqaa.config import save_config
from megatron_aqaa.training.lm_config import TrainConfig
from tests.slurm.cluster import Cluster, until
from tests.slurm.launch import TWO_BY_TWO, launch
from tests.training.dpo.tiny_pairs import VOCABULARY, document, groups, pair_config, write_documents, write_pairs

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
STAGES = ("sft1", "sft2", "dpo", "merge", "export")
LAYOUT = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data and configurations of all stages."""
    VOCABULARY.save(tmp_path / "vocabulary.yaml")
    write_pairs(tmp_path / "train", 20)
    write_pairs(tmp_path / "held_out", 6, seed=1)
    random = np.random.default_rng(2)
    chats = [document([VOCABULARY.bos, *groups(random, 2)], [20, 21, VOCABULARY.eot]) for _ in range(20)]
    write_documents(tmp_path / "chat", chats, kind="chat")
    save_config(sft(tmp_path, "sft1", start=None, parallel=LAYOUT), tmp_path / "sft1.yaml")
    save_config(sft(tmp_path, "sft2", start=tmp_path / "sft1", parallel={}), tmp_path / "sft2.yaml")
    save_config(pair_config(tmp_path, "dpo", init_from=tmp_path / "sft1"), tmp_path / "dpo.yaml")
    weights = {"sft1": 5, "sft2": 5, "dpo": 1}
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in weights.items()]
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    return tmp_path


def sft(folder: Path, run: str, start: Path | None, parallel: dict[str, Any]) -> TrainConfig:
    """An SFT run with the model of the preference run."""
    pairs = pair_config(folder, run, parallel=parallel)
    values = {field.name: getattr(pairs, field.name) for field in dataclasses.fields(TrainConfig)}
    values["data"] = dataclasses.replace(pairs.data, train={"chat": 1.0}, validation=())
    values["training"] = dataclasses.replace(pairs.training, init_from=start)
    return TrainConfig(**values)


def chain(folder: Path) -> dict[str, Any]:
    commands = {
        "sft1": ["tools/train.py", f"{folder}/sft1.yaml"],
        "sft2": ["tools/train.py", f"{folder}/sft2.yaml"],
        "dpo": ["tools/train_dpo.py", f"{folder}/dpo.yaml"],
        "merge": ["tools/merge_checkpoints.py", f"{folder}/merge.yaml", f"{folder}/merged", "--root", str(folder)],
        "export": ["tools/convert_checkpoint.py", "export", f"{folder}/merged", f"{folder}/exported"],
    }
    needs = {"sft1": [], "sft2": ["sft1"], "dpo": ["sft1"], "merge": ["sft2", "dpo"], "export": ["merge"]}
    slurm = {"sft1": TWO_BY_TWO}
    stages = [{"name": n, "command": commands[n], "needs": needs[n], "slurm": slurm.get(n, {})} for n in STAGES]
    return {"stages": stages}


def test_the_chain_runs_to_its_exported_checkpoint(cluster: Cluster, folder: Path) -> None:
    jobs = launch(cluster, folder, chain(folder), "--chain")
    assert tuple(jobs) == STAGES
    assert cluster.fields(jobs["merge"])["Dependency"].count("afterok:") == 2
    cluster.wait(jobs["export"], timeout_s=400)
    assert {name: cluster.state(job) for name, job in jobs.items()} == dict.fromkeys(STAGES, "COMPLETED")
    weights = load_file(folder / "exported" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert "model.layers.3.mlp.down_proj.weight" in weights


def test_what_waits_for_a_failed_stage_is_cancelled(cluster: Cluster, folder: Path) -> None:
    (folder / "chat.idx").unlink()
    jobs = launch(cluster, folder, chain(folder), "--chain")
    cluster.wait(jobs["sft1"], "FAILED")
    until(
        lambda: {cluster.state(jobs[name]) for name in STAGES[1:]} == {"CANCELLED"},
        300.0,
        lambda: cluster.story(jobs["export"]),
    )
    assert not [name for name in ("sft2", "dpo", "merged", "exported") if (folder / name).exists()]
