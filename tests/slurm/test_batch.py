"""Batch files: what they ask for, that bash reads them, and that the examples are what the renderer makes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from megatron_aqaa.config import parse_config
from megatron_aqaa.slurm.batch import render
from megatron_aqaa.slurm.config import JobConfig
from megatron_aqaa.slurm.needs import Needs, check_layout

ROOT = Path(__file__).parents[2]


def job(command: str = "tools/train.py run.yaml", **slurm: object) -> JobConfig:
    return parse_config(JobConfig, {"name": "sft", "command": command.split(), "slurm": slurm})


def rendered(command: str = "tools/train.py run.yaml", needs: Needs | None = None, **slurm: object) -> str:
    text = render(job(command, **slurm), needs or Needs(), "launch.yaml")
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0 and not checked.stderr, checked.stderr
    return text


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_every_setting_reaches_sbatch() -> None:
    text = rendered(
        nodes=16, gpus_per_node=8, cpus_per_process=12, hours=36.5, partition="long", account="speech",
        signal_lead_s=600, extra=["--exclusive"],
    )  # fmt: skip
    assert directives(text) == [
        "--job-name=sft",
        "--nodes=16",
        "--ntasks-per-node=8",
        "--cpus-per-task=12",
        "--gpus-per-node=8",
        "--time=1-12:30:00",
        "--partition=long",
        "--account=speech",
        "--output=runs/slurm/%x-%j.out",
        "--open-mode=append",
        "--signal=B:USR1@600",
        "--requeue",
        "--exclusive",
    ]
    assert "srun --nodes=16 --ntasks-per-node=8 --cpus-per-task=12 --kill-on-bad-exit=0 --wait=60" in text
    assert "tools/preflight.py \\\n    --nodes $nodes \\\n    --gpus 8 \\\n" in text


def test_setup_comes_before_environment_and_values_are_quoted() -> None:
    text = rendered(setup=["module load cuda"], venv="my venv", environment={"GREETING": "a $b 'c'", "N": 1})
    lines = text.splitlines()
    start = lines.index("module load cuda")
    assert lines[start + 1] == "source 'my venv/bin/activate'"
    said = subprocess.run(["bash", "-c", f'{lines[start + 2]}; echo "$GREETING"'], text=True, capture_output=True)
    assert said.stdout == "a $b 'c'\n"
    assert lines[start + 3] == "export N=1"


def test_a_container_takes_the_directory_of_submission_along() -> None:
    text = rendered(container_image="aqaa.sqsh", container_mounts=["/data:/data"])
    assert "--container-image=aqaa.sqsh" in text
    assert '--container-mounts="$SLURM_SUBMIT_DIR:$SLURM_SUBMIT_DIR",/data:/data' in text
    assert "activate" not in text


def test_training_is_told_to_save_and_others_are_interrupted() -> None:
    assert 'scancel --signal=USR1 "$SLURM_JOB_ID"' in rendered()
    assert 'scancel --signal=INT "$SLURM_JOB_ID"' in rendered("tools/merge_checkpoints.py merge.yaml merged")


def test_without_requeue_the_job_ends() -> None:
    text = rendered(requeue=False)
    assert "--no-requeue" in directives(text)
    assert "scontrol requeue" not in text
    assert text.endswith('exit "$status"\n')


def test_paths_to_look_at_are_quoted_and_named_once() -> None:
    path = Path("my data/chat.idx")
    text = rendered(needs=Needs(reads=(path, path), writes=(Path("run"),)))
    assert text.count("--read 'my data/chat.idx' \\\n") == 1
    assert "--write run \\\n" in text


def test_an_array_task_takes_its_shard() -> None:
    text = rendered("tools/prepare_chat.py chat.yaml", array_size=16)
    assert "--array=0-15" in directives(text)
    assert "--output=runs/slurm/%x-%A_%a.out" in directives(text)
    assert 'prepare_chat.py chat.yaml shard="$SLURM_ARRAY_TASK_ID" num_shards=16 ||' in text


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        ({"nodes": 0}, "slurm.nodes = 0: must be at least 1"),
        ({"hours": 0.05}, "hours = 0.05: must be longer than signal_lead_s = 300"),
        ({"hours": float("nan")}, "slurm.hours = nan"),
        ({"gpus_per_node": 4, "processes_per_node": 8}, "processes_per_node = 8: must lie in 1 … gpus_per_node = 4"),
        ({"venv": ".venv", "container_image": "x"}, "give one of them"),
        ({"container_mounts": ["a:b"]}, "container_mounts needs slurm.container_image"),
        ({"extra": ["exclusive"]}, "'exclusive' is no option of sbatch"),
        ({"environment": {"A B": 1}}, "'A B' cannot be the name of a variable"),
        ({"array_size": 4}, "tools/train.py has no shards"),
        ({"node": 2}, "did you mean slurm.nodes?"),
    ],
)
def test_mistakes_are_named(slurm: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        job(**slurm)


def test_commands_of_one_process_refuse_more() -> None:
    with pytest.raises(ValueError, match="works in one process, not in nodes × processes = 2"):
        job("tools/merge_checkpoints.py merge.yaml merged", nodes=2)


def test_processes_must_hold_whole_copies() -> None:
    needs = Needs(model_parallel_size=64, micro_batch_size=1, global_batch_size=128)
    check_layout(job(nodes=16, gpus_per_node=8), needs)
    with pytest.raises(ValueError, match="12 nodes × 8 processes = 96 cannot hold .* over 64 .* that can is 128"):
        check_layout(job(nodes=12, gpus_per_node=8), needs)
    with pytest.raises(ValueError, match="are 3 copies .*global_batch_size = 128 is no multiple .* 1 × 3"):
        check_layout(job(nodes=24, gpus_per_node=8), needs)
