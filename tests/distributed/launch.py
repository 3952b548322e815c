"""Runs a function in several real processes joined by gloo, and brings back results or the first traceback."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any


def run(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 180.0) -> list[Any]:
    """`function(*args)` on every rank, with the environment that `torchrun` would give.

    Args:
        function: importable by name: the processes are spawned. It may call `platform.initialize` as often as it likes;
            the group of all ranks is there already, met through a file, so that no port can be taken.
        world_size: number of processes, one thread each.
        args: pickled to every rank.
        timeout_s: limit for all ranks together; the stacks of ranks that still run are then part of the error.

    Returns:
        What each rank returned, in order of ranks.

    Raises:
        AssertionError: a rank failed, died or hung; with the traceback of the rank that failed first.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
        ranks = [
            context.Process(
                target=_main, args=(pipes[rank][1], Path(folder), rank, world_size, timeout_s, function, args)
            )
            for rank in range(world_size)
        ]
        for process, (_, sender) in zip(ranks, pipes, strict=True):
            process.start()
            sender.close()  # so that a death of the process reads as the end of the pipe
        try:
            return _collect([receiver for receiver, _ in pipes], Path(folder), timeout_s)
        finally:
            for process in ranks:
                _kill_session(process)


def _kill_session(rank: multiprocessing.process.BaseProcess) -> None:
    """End a rank and what it started: Megatron's checkpoint writer leaves a process of 270 MB that outlives it."""
    assert rank.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(rank.pid, signal.SIGKILL)
    rank.kill()  # one that has not yet come to its `setsid`
    rank.join()


def _collect(receivers: list[Connection], folder: Path, timeout_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_s + 2.0  # the ranks write their stacks at timeout_s
    while len(results) < len(receivers):
        waiting = [receiver for rank, receiver in enumerate(receivers) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"ranks still ran after {timeout_s:.0f} s:\n{_stacks(folder)}")
        for receiver in ready:
            rank = receivers.index(receiver)  # type: ignore[arg-type]
            try:
                succeeded, value = pickle.loads(receiver.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                raise AssertionError(f"rank {rank} died without a word:\n{_stacks(folder)}") from None
            if not succeeded:
                raise AssertionError(f"rank {rank} of {len(receivers)} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(receivers))]


def _stacks(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(folder.glob("rank*.stack")))


def _main(
    sender: Connection,
    folder: Path,
    rank: int,
    world_size: int,
    timeout_s: float,
    function: Callable[..., Any],
    args: tuple,
) -> None:
    """One rank, in a session of its own."""
    os.setsid()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), OMP_NUM_THREADS="1")
    with (folder / f"rank{rank}.stack").open("w") as stack:
        faulthandler.enable(stack)
        faulthandler.dump_traceback_later(timeout_s, file=stack)
        try:
            _send(sender, True, _joined(folder, rank, world_size, function, args))
        except BaseException:
            _send(sender, False, traceback.format_exc())
        finally:
            faulthandler.cancel_dump_traceback_later()
            os._exit(0)  # a gloo thread that waits for a failed peer must not keep this process


def _send(sender: Connection, succeeded: bool, value: Any) -> None:
    """By value: multiprocessing's own pickler would hand out tensors from a process that is about to end."""
    sender.send_bytes(pickle.dumps((succeeded, value)))


def _joined(folder: Path, rank: int, world_size: int, function: Callable[..., Any], args: tuple) -> Any:
    import torch
    import torch.distributed as dist

    from megatron_aqaa import platform

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / "meet"), world_size), rank=rank, world_size=world_size
    )
    result = function(*args)
    dist.barrier()
    platform.shutdown()
    return result
