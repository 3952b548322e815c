"""Jobs of these tests, submitted as a user does."""

from __future__ import annotations

import io
import json
import os
import runpy
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "launch_slurm.py"
TWO_BY_TWO = {"nodes": 2, "processes_per_node": 2}


def launch(cluster: Cluster, folder: Path, raw: dict[str, Any], *options: str) -> dict[str, str]:
    """Submit `raw` with tools/launch_slurm.py; returns name of a job → its id.

    Args:
        cluster: where.
        folder: for launch file, batch files and logs.
        raw: launch file or chain file; how Python is found here is added.
        options: of the command.
    """
    config = {**raw, "slurm": {**surroundings(folder), **raw.get("slurm", {})}}
    config["preflight"] = {"message_mib": 1, "timeout_s": 60, **raw.get("preflight", {})}
    path = folder / "launch.yaml"
    path.write_text(yaml.safe_dump(config))
    code, said, error = command([str(path), *options], cluster.environment)
    assert code == 0, error
    return dict(line.split(": job ") for line in said.splitlines())  # type: ignore[misc]


def command(words: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    """tools/launch_slurm.py in this process, since it takes seconds to start: exit code, stdout, stderr."""
    said, error = io.StringIO(), io.StringIO()
    argv, before = sys.argv, dict(os.environ)
    sys.argv = [str(TOOL), *words]
    os.environ.update(environment)
    try:
        with redirect_stdout(said), redirect_stderr(error), chdir(ROOT), pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TOOL), run_name="__main__")
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(before)
    return int(ended.value.code or 0), said.getvalue(), error.getvalue()


def surroundings(folder: Path) -> dict[str, Any]:
    """Section `slurm` of every job here: this Python, loopback, one thread."""
    return {
        "hours": 0.5,
        "log_directory": str(folder / "log"),
        "setup": [f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}"],
        "environment": {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": 1},
    }


def losses(run: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of every step, as logged."""
    log = run / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records if "loss" in record]
