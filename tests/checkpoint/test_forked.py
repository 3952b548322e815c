"""Calls in forked processes: what they see, how they fail, that they leave nothing behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from megatron_aqaa.checkpoint.forked import Forked

ORPHAN = """
import os, time
from pathlib import Path
from megatron_aqaa.checkpoint.forked import Forked

def write(path=Path({path!r})):
    path.write_text(str(os.getpid()))
    time.sleep(60)

Forked(write)
while not Path({path!r}).exists():
    time.sleep(0.01)
print("started", flush=True)
time.sleep(60)
"""


def children() -> list[multiprocessing.process.BaseProcess]:
    """Of this process; Megatron's own saves, in other tests, leave a manager behind."""
    return [child for child in multiprocessing.active_children() if not child.name.startswith("SyncManager")]


def test_it_sees_memory_as_it_was_at_the_fork() -> None:
    value = torch.arange(1 << 20)
    go = multiprocessing.get_context("fork").Event()

    def total() -> int:
        go.wait()
        return int(value.clone().sum())

    wanted = int(value.sum())
    forked = Forked(total)
    value.zero_()
    assert not forked.is_done()
    go.set()
    assert forked.result() == wanted


def test_a_failure_is_told() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device", "step_1/__0_0.distcp")

    with pytest.raises(OSError, match=r"OSError: \[Errno 28\] No space left on device: 'step_1/__0_0.distcp'"):
        Forked(fail).result()


def test_a_killed_process_is_an_error_that_says_so() -> None:
    forked = Forked(lambda: time.sleep(60))
    [child] = children()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(OSError, match="the process that writes ended with SIGKILL"):
        forked.result()


def test_stop_signals_do_not_end_it_and_kill_does() -> None:
    go = multiprocessing.get_context("fork").Event()
    ready = multiprocessing.get_context("fork").Event()

    def wait_for_it() -> str:
        ready.set()
        go.wait()
        return "done"

    forked = Forked(wait_for_it)
    ready.wait()
    [child] = children()
    assert child.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(child.pid, number)
    go.set()
    assert forked.result() == "done"
    other = Forked(lambda: time.sleep(60))
    other.kill()
    assert not children()


def test_large_results_do_not_block() -> None:
    forked = Forked(lambda: bytes(1 << 24))
    while not forked.is_done():
        time.sleep(0.01)
    assert len(forked.result()) == 1 << 24


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN.format(path=str(path))], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "started\n"
    parent.kill()
    parent.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(path.read_text())).wait(timeout=10)
