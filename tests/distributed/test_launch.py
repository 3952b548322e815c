"""The launcher itself: results, failures, deaths and hangs."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed.launch import run

pytestmark = pytest.mark.distributed


def summed(value: int) -> int:
    total = torch.tensor(value * (dist.get_rank() + 1))
    dist.all_reduce(total)
    return int(total)


def failing_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise KeyError("the reason")
    dist.barrier()


def dying_on_rank_1() -> None:
    if dist.get_rank() == 1:
        os._exit(3)
    dist.barrier()


def hanging() -> None:
    time.sleep(600)


def test_results_come_back_by_rank() -> None:
    assert run(summed, 2, 7) == [21, 21]


def test_the_failing_rank_is_named_with_its_traceback() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 1 of 2 failed.*failing_on_rank_1.*the reason"):
        run(failing_on_rank_1, 2)


def test_a_rank_that_dies_is_named() -> None:
    with pytest.raises(AssertionError, match=r"rank 1 died without a word|Connection closed by peer"):
        run(dying_on_rank_1, 2)


def test_a_hang_shows_where() -> None:
    with pytest.raises(AssertionError, match=r"(?s)still ran after 6 s.*hanging"):
        run(hanging, 1, timeout_s=6.0)


def leaving_a_child() -> int:
    return subprocess.Popen(["sleep", "600"]).pid


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()  # a zombie waits for its parent only


def test_nothing_outlives_its_rank() -> None:
    (child,) = run(leaving_a_child, 1)
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)
