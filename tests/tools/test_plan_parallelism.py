"""`tools/plan_parallelism.py` as a user meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

RUN, CLUSTER = "examples/tiny_cpu/sft.yaml", "examples/clusters/h100.yaml"
MODEL = {
    "num_layers": 88,
    "hidden_size": 12288,
    "ffn_hidden_size": 31232,
    "num_attention_heads": 96,
    "num_query_groups": 8,
}


def plan(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/plan_parallelism.py", *words], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def model_130b(tmp_path: Path) -> str:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL}))
    return str(path)


def test_a_run_is_planned_and_drawn(tmp_path: Path) -> None:
    done = plan(RUN, CLUSTER, "--gpus", "8", "--picture", str(tmp_path / "plan.png"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("the file's own layout") < done.stdout.index("the best of")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    sections = yaml.safe_load(done.stdout[done.stdout.index("parallel:") :])
    assert sorted(sections) == ["model", "parallel", "training"]


def test_the_130b_is_planned_from_its_model_alone(model_130b: str) -> None:
    done = plan(model_130b, CLUSTER, "data.sequence_length=8192", "training.global_batch_size=1024", "--gpus", "1024")
    assert done.returncode == 0, done.stderr
    assert "131,946,590,208 parameters" in done.stdout
    assert "do not fit" in done.stdout and "lacks" in done.stdout
    assert "layers shared out over the pipeline in other ways" in done.stdout


def test_published_runs_are_compared_with_their_sensitivity() -> None:
    done = plan("--published", "examples/clusters/published/megatron_lm_h100.yaml", CLUSTER)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("119B")]) == 2
    assert "full recompute -" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((RUN, "nowhere.yaml"), "nowhere.yaml: no such configuration file"),
        (("nowhere.yaml", CLUSTER), "nowhere.yaml: no such configuration file"),
        ((RUN, CLUSTER, "model.hidden_sise=3"), "did you mean model.hidden_size?"),
        ((RUN, CLUSTER, "--gpus", "7"), "no layout of 7 GPUs divides the model"),
    ],
)
def test_mistakes_are_named_with_code_2(words: tuple[str, ...], message: str) -> None:
    failed = plan(*words)
    assert failed.returncode == 2
    assert message in failed.stderr and "Traceback" not in failed.stderr


def test_nothing_fits_says_how_much_is_missing(model_130b: str) -> None:
    failed = plan(model_130b, CLUSTER, "data.sequence_length=8192", "training.global_batch_size=1024", "--gpus", "8")
    assert failed.returncode == 2
    assert "smallest lacking" in failed.stderr and "GiB at TP" in failed.stderr


def test_help_has_an_example() -> None:
    assert "python tools/plan_parallelism.py examples/tiny_cpu/sft.yaml" in plan("--help").stdout
