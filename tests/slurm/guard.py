"""Ends what a cluster leaves: a process of its own, started as a script, so it imports nothing of the project.

A slurmstepd outlives its slurmd, and a killed test run has not stopped anything.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def processes(folder: Path) -> list[int]:
    """Whatever runs with the cluster's configuration: daemons, steps, jobs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"SLURM_CONF={folder}/".encode() in (process / "environ").read_bytes()
        except OSError:  # it has ended
            continue
        if mine and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def end_all(folder: Path) -> None:
    """When the process that started this one ends, in whatever way: kill the rest, remove the folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C in a terminal reaches the whole group
    sys.stdin.read()
    while found := processes(folder):
        for number in found:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    end_all(Path(sys.argv[1]))
