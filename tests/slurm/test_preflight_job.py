"""A job with a bad node or a missing path fails before its first step, and says which."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_aqaa.config import save_config
from tests.slurm.cluster import Cluster
from tests.slurm.launch import launch
from tests.training.tiny_run import tiny_config, write_data

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    write_data(tmp_path / "data")
    save_config(tiny_config(tmp_path / "data", tmp_path / "run"), tmp_path / "run.yaml")
    return {"name": "sft", "command": ["tools/train.py", str(tmp_path / "run.yaml")], "slurm": {"nodes": 2}}


def failed(cluster: Cluster, folder: Path, job: dict[str, Any]) -> list[str]:
    """What the pre-flight complained of, after the job failed without a step."""
    number = launch(cluster, folder, job)["sft"]
    cluster.wait(number, "FAILED")
    assert not list((folder / "run").glob("*"))
    return [line for line in cluster.output(number).splitlines() if line.startswith("preflight: n")]


def test_the_node_without_the_local_cache_is_named(cluster: Cluster, job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "local" / "n1" / "cache").mkdir(parents=True)
    job["preflight"] = {"readable": [f"{tmp_path}/local/$SLURMD_NODENAME/cache"]}
    (complaint, *rest) = [line for line in failed(cluster, tmp_path, job) if "network" not in line]
    assert complaint == f"preflight: n2: cannot read {tmp_path}/local/n2/cache: No such file or directory"
    assert not rest


def test_a_missing_data_set_is_named_by_every_node(cluster: Cluster, job: dict[str, Any], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data")
    complaints = failed(cluster, tmp_path, job)
    missing = f"cannot read {tmp_path}/data/documents.idx: No such file or directory"
    assert {f"preflight: n1: {missing}", f"preflight: n2: {missing}"} <= set(complaints)
