"""A job of two nodes and four processes is told to stop, goes back into the queue, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_aqaa.checkpoint.store import latest_checkpoint
from megatron_aqaa.config import save_config
from tests.slurm.cluster import Cluster, until
from tests.slurm.launch import TWO_BY_TWO, launch, losses
from tests.training.tiny_run import tiny_config, write_data

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
STEPS = 40
LAYOUT = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def submit(cluster: Cluster, data: Path, folder: Path) -> str:
    config = tiny_config(data, folder / "run", LAYOUT, steps=STEPS, save_interval=1000)
    save_config(config, folder / "run.yaml")
    job = {"name": "sft", "command": ["tools/train.py", str(folder / "run.yaml")], "slurm": TWO_BY_TWO}
    return launch(cluster, folder, job)["sft"]


@pytest.fixture(scope="module")
def straight(cluster: Cluster, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float, float]]:
    """What a job that nobody disturbs logs."""
    folder = tmp_path_factory.mktemp("straight")
    number = submit(cluster, data, folder)
    cluster.wait(number)
    assert "preflight: 2 nodes, 4 processes: clocks within" in cluster.output(number)
    logged = losses(folder / "run")
    assert [step for step, *_ in logged] == list(range(1, STEPS + 1))
    return logged


@pytest.fixture
def begun(cluster: Cluster, data: Path, straight: object, tmp_path: Path) -> str:
    """A job that has done its first steps."""
    number = submit(cluster, data, tmp_path)
    until(lambda: len(losses(tmp_path / "run")) >= 3, 300.0, lambda: cluster.story(number))
    assert len(losses(tmp_path / "run")) < STEPS
    return number


def test_signal_before_the_time_limit(
    cluster: Cluster, begun: str, straight: list[tuple[int, float, float]], tmp_path: Path
) -> None:
    """As `#SBATCH --signal=B:USR1@…` sends it: to the batch shell alone."""
    cluster.run("scancel", "--batch", "--signal=USR1", begun)
    cluster.wait(begun)
    said = cluster.output(begun)
    assert "saved; run the same command to continue" in said
    assert "stopped with status 75: back into the queue" in said
    assert cluster.fields(begun)["Restarts"] == "1"
    assert losses(tmp_path / "run") == straight


def test_preemption_by_a_more_urgent_job(
    cluster: Cluster, begun: str, straight: list[tuple[int, float, float]], tmp_path: Path
) -> None:
    """SLURM sends SIGTERM to the steps and gives them the partition's GraceTime."""
    words = ["--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path}/urgent.out", "--wrap=sleep 1"]
    urgent = cluster.run("sbatch", "--parsable", *words).strip()
    cluster.wait(urgent)
    cluster.wait(begun)
    assert "saved; run the same command to continue" in cluster.output(begun)
    assert cluster.fields(begun)["Restarts"] == "1"
    assert losses(tmp_path / "run") == straight


def test_a_cancelled_job_saves_and_stays_away(cluster: Cluster, begun: str, tmp_path: Path) -> None:
    cluster.run("scancel", begun)
    cluster.wait(begun, "CANCELLED")
    assert cluster.fields(begun)["Restarts"] == "0"
    assert "back into the queue" not in cluster.output(begun)
    assert latest_checkpoint(tmp_path / "run") is not None
