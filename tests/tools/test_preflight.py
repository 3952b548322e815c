"""`tools/preflight.py` in two processes, which say that they are two nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.launch import ROOT
from tests.slurm.test_preflight import free_port

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def look(*words: str, world_size: int = 2) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each process."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "tools/preflight.py", "--nodes", *("n1", "n2")[:world_size], *words]
    processes = []
    for rank in range(world_size):
        own = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size), "PYTHONPATH": str(ROOT)}
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **shared, **own}, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def test_a_good_pair_is_measured(tmp_path: Path) -> None:
    first, second = look("--read", str(tmp_path), "--write", f"{tmp_path}/run", "--limits", "message_mib=1")
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].startswith("preflight: 2 nodes, 2 processes: clocks within ")
    assert "all-reduce" in first[1] and "slowest node n" in first[1]
    assert second[1] == ""


def test_a_slow_network_fails_on_every_process() -> None:
    first, second = look("--limits", "message_mib=1", "min_link_gb_per_s=1e6")
    assert (first[0], second[0]) == (1, 1)
    assert "preflight: n1: " in first[2] and "preflight: n2: " in first[2] and "1e+06 wanted" in first[2]


def test_one_process_needs_no_network(tmp_path: Path) -> None:
    ((code, said, error),) = look("--write", str(tmp_path), world_size=1)
    assert (code, said) == (0, "preflight: 1 nodes, 1 processes: network not measured\n"), error


def test_a_mistake_has_code_2() -> None:
    ((code, _, error),) = look("--limits", "timeout=3", world_size=1)
    assert code == 2
    assert "did you mean timeout_s?" in error
