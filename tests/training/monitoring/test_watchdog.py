"""Who is late, from the files of all ranks; when the watchdog barks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from megatron_aqaa.training.monitoring.watchdog import Watchdog, WatchdogConfig, late_ranks

ALLREDUCE = "waits at distributed_c10d.py:2810 all_reduce"


def write(directory: Path, *standings: str) -> None:
    for rank, standing in enumerate(standings):
        (directory / f"rank_{rank}.txt").write_text(f"rank {rank} {standing}\nnothing finished\n\nstack\n")


def test_who_is_in_no_collective_is_late(tmp_path: Path) -> None:
    write(tmp_path, ALLREDUCE, "is at loader.py:3 read", ALLREDUCE)
    assert late_ranks(tmp_path, 3, within_s=9) == ["rank 1 is at loader.py:3 read"]


def test_who_writes_nothing_is_dead_or_stopped(tmp_path: Path) -> None:
    write(tmp_path, ALLREDUCE, ALLREDUCE)
    assert late_ranks(tmp_path, 3, within_s=9) == ["rank 2 wrote nothing: it is dead or stopped"]


def test_a_file_of_an_earlier_hang_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, ALLREDUCE, "is at loader.py:3 read")
    an_hour_ago_s = time.time() - 3600
    os.utime(tmp_path / "rank_1.txt", (an_hour_ago_s, an_hour_ago_s))
    assert late_ranks(tmp_path, 2, within_s=9) == ["rank 1 wrote nothing: it is dead or stopped"]


def test_who_stands_elsewhere_than_most_is_late(tmp_path: Path) -> None:
    write(tmp_path, ALLREDUCE, ALLREDUCE, "waits at p2p_communication.py:7 recv_forward")
    assert late_ranks(tmp_path, 3, within_s=9) == ["rank 2 waits at p2p_communication.py:7 recv_forward"]


def test_nobody_is_late_where_all_stand_alike(tmp_path: Path) -> None:
    write(tmp_path, ALLREDUCE, ALLREDUCE)
    assert late_ranks(tmp_path, 2, within_s=9) == []


def test_it_barks_once_a_hang_with_the_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Watchdog(WatchdogConfig(timeout_s=0.3), tmp_path, rank=0, world_size=1) as watchdog:
        watchdog.alive("step 5")
        time.sleep(1.5)
    stack = (tmp_path / "stacks" / "rank_0.txt").read_text()
    assert stack.startswith(f"rank 0 is at {__file__}:")
    assert "the last was step 5" in stack
    assert "test_it_barks_once_a_hang_with_the_stack" in stack.split("\n\n", 1)[1]
    assert capsys.readouterr().err.count("watchdog: nothing finished for") == 1


def test_it_is_silent_while_steps_are_finished(tmp_path: Path) -> None:
    with Watchdog(WatchdogConfig(timeout_s=1.0), tmp_path, rank=0, world_size=1) as watchdog:
        for step in range(15):
            time.sleep(0.1)
            watchdog.alive(f"step {step}")
    assert not (tmp_path / "stacks").exists()


def test_nobody_watches_without_a_timeout(tmp_path: Path) -> None:
    with Watchdog(WatchdogConfig(timeout_s=None), tmp_path, rank=0, world_size=1):
        time.sleep(0.2)
    assert not (tmp_path / "stacks").exists()


def test_a_timeout_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"watchdog.timeout_s = 0\.0: must be above 0, or null"):
        WatchdogConfig(timeout_s=0.0)
