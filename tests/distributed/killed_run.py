"""Two ranks of a tiny run that can be killed one by one, started again and again within a second."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from megatron_aqaa.checkpoint.directories import partial_checkpoints
from tests.training.tiny_run import tiny_config

WORLD_SIZE = 2
_PRELOADED = ["megatron_aqaa.training.train", "tests.training.tiny_run"]  # so that a start takes no imports


class KilledRun:
    """One training command over two ranks, each in a session of its own; the same settings at every start.

    Args:
        data: of `tiny_run`.
        run: directory of the run.
        parallel: layout.
        training: settings of the loop.
    """

    def __init__(self, data: Path, run: Path, parallel: dict[str, Any], **training: Any) -> None:
        self.run, self._arguments = run, (data, run, parallel, training)
        self._starts = 0
        self.ranks: list[Any] = []
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)

    def start(self) -> None:
        self._starts += 1
        self.run.mkdir(parents=True, exist_ok=True)
        meet = self.run / f"meet{self._starts}"
        self.ranks = [
            self._context.Process(target=_rank, args=(rank, meet, *self._arguments)) for rank in range(WORLD_SIZE)
        ]
        for process in self.ranks:
            process.start()

    def wait_until(self, reached: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Look every millisecond; also comes back when a rank has ended."""
        deadline = time.monotonic() + timeout_s
        while not reached() and all(process.is_alive() for process in self.ranks):
            assert time.monotonic() < deadline, f"nothing happened for {timeout_s} s: {self.errors()}"
            time.sleep(0.001)

    def kill(self, rank: int) -> None:
        """Kill −9, upon which a launcher (torchrun, srun) asks the other ranks to stop."""
        os.kill(self.ranks[rank].pid, signal.SIGKILL)
        self.ranks[rank].join()
        for process in self.ranks:
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    def join(self, timeout_s: float = 60.0) -> list[int]:
        """Exit codes, once every rank and all that they started has ended."""
        deadline = time.monotonic() + timeout_s
        for process in self.ranks:
            process.join(max(0.0, deadline - time.monotonic()))
            assert process.exitcode is not None, f"a rank outlived the other by {timeout_s} s: {self.errors()}"
        while left := self._left():
            assert time.monotonic() < deadline, f"left running: {left}"
            time.sleep(0.01)
        return [process.exitcode for process in self.ranks]

    def end(self) -> None:
        for process in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def saves(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(directory for directory in partial_checkpoints(self.run))

    def records(self) -> list[dict[str, Any]]:
        """The log without a line that was cut by a kill."""
        path = self.run / "log.jsonl"
        records = []
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
        return [record for record in records if "grad_norm" in record]

    def errors(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.run.glob("rank*.error")))

    def _left(self) -> list[str]:
        sessions = {process.pid for process in self.ranks}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {process.name()}")
        return found


def _rank(rank: int, meet: Path, data: Path, run: Path, parallel: dict[str, Any], training: dict[str, Any]) -> None:
    os.setsid()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD_SIZE), OMP_NUM_THREADS="1")
    status = 1
    try:
        import torch

        from megatron_aqaa.training.train import train

        torch.set_num_threads(1)
        store = torch.distributed.FileStore(str(meet), WORLD_SIZE)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE)
        train(tiny_config(data, run, parallel, **training))
        status = 0
    except BaseException:
        (run / f"rank{rank}.error").write_text(traceback.format_exc())
    finally:
        os._exit(status)  # a gloo thread that waits for a dead peer must not keep this process
