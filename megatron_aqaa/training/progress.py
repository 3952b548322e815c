"""Progress of long work: a bar on a terminal, plain lines elsewhere, JSON lines on disk."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm


class Progress:
    """Shows rate and ETA of `total` steps and appends one JSON line per report to `log_path`.

    Use as a context manager; `update` may be called every step, it prints at most every `interval_s` seconds
    where standard error is not a terminal.
    """

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        log_path: Path | None = None,
        interval_s: float = 10.0,
        silent: bool = False,
    ) -> None:
        self.title, self.total, self.done, self.first = title, total, done, done
        self.log_path, self.interval_s, self.silent = log_path, interval_s, silent
        self.started_s = self.printed_s = time.monotonic()
        if log_path:
            _end_last_line(log_path)
        on_terminal = sys.stderr.isatty() and not silent
        self.bar = tqdm(total=total, initial=done, desc=title, dynamic_ncols=True) if on_terminal else None
        self.file: TextIO | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.close()
        if self.file:
            self.file.close()
            self.file = None

    def update(self, done: int, **values: float) -> None:
        """Report that `done` steps are finished, with the values to show beside them."""
        if self.bar:
            self.bar.update(done - self.done)
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
        elif not self.silent and (time.monotonic() - self.printed_s >= self.interval_s or done == self.total):
            self.printed_s = time.monotonic()
            text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"{self.title}: {done}/{self.total} {text} ETA {self.eta_s(done):.0f} s", file=sys.stderr, flush=True)
        self.done = done

    def note(self, text: str) -> None:
        """Say something that is no number of a step."""
        if self.bar:
            self.bar.write(f"{self.title}: {text}", file=sys.stderr)
        elif not self.silent:
            print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def eta_s(self, done: int) -> float:
        """Seconds left at the rate since start."""
        elapsed_s = time.monotonic() - self.started_s
        return elapsed_s / max(done - self.first, 1) * (self.total - done)

    def log(self, record: dict[str, Any]) -> None:
        """Append one JSON line to the log file, if there is one."""
        if self.log_path:
            if self.file is None:  # stays open: on shared storage, opening and closing wait for the server
                self.file = self.log_path.open("a", buffering=1)
            self.file.write(json.dumps(record) + "\n")


def _end_last_line(path: Path) -> None:
    """A killed run may have left it half-written: what comes next must not be joined to it."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.write(b"\n")
