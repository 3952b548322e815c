"""A call in a forked process, which sees the memory of this one as it was at the fork."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Forked(Generic[T]):
    """Runs `call` in a forked process; its result must be pickled.

    The process dies with its parent, by whatever the parent dies. Stop signals, which reach the whole group of
    processes, do not end it: the parent that stops cleanly waits for it.

    Args:
        call: touches no CUDA memory and waits for no other thread of this process, neither of which a fork takes along.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(sender, os.getpid(), call), daemon=True)
        collecting = gc.isenabled()
        gc.disable()  # the child would free CUDA memory that belongs to the parent
        try:
            self._process.start()
        finally:
            if collecting:
                gc.enable()
        self._outcome: tuple[Any, str | None] | None = None
        sender.close()  # so that a death of the process reads as the end of the pipe

    def is_done(self) -> bool:
        """Whether `result` would not wait; taking down a process of some GB takes 40 ms, and more."""
        if self._outcome is None and self._receiver.poll():
            self._receive()
        return self._outcome is not None and not self._process.is_alive()

    def result(self) -> T:
        """What `call` gave.

        Raises:
            OSError: it failed or was killed; says by what.
        """
        value, error = self._outcome or self._receive()
        self._process.join()
        if error is not None:
            raise OSError(error)
        if self._process.exitcode:
            raise OSError(f"the process that writes ended with {_told(self._process.exitcode)}")
        result: T = value
        return result

    def _receive(self) -> tuple[Any, str | None]:
        try:
            outcome: tuple[Any, str | None] = self._receiver.recv()
        except EOFError:
            outcome = None, None  # the exit code tells the rest
        self._outcome = outcome
        return outcome

    def kill(self) -> None:
        """End it now, with what it has done so far."""
        self._process.kill()
        self._process.join()


def _told(exit_code: int) -> str:
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"


def _run(sender: Connection, parent: int, call: Callable[[], Any]) -> None:
    _die_with(parent)
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # OpenMP does not survive a fork: a second thread would be waited for and never come
    outcome: tuple[Any, str | None]
    try:
        outcome = (call(), None)
    except Exception as error:
        outcome = (None, f"{type(error).__name__}: {error}")
    sender.send(outcome)


def _die_with(parent: int) -> None:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)
