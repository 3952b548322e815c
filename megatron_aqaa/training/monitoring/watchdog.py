"""Notices that no step is finished any more, and writes down where every rank stands.

A thread in every rank watches its own rank: where all ranks wait for one, each sees that no step ends, the one that
sleeps as well as those that wait for it in a collective.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

from megatron_aqaa.platform.exit_status import STOPPED

_WAITING_FILES = ("distributed_c10d.py", "p2p_communication.py")  # torch's collectives, Megatron's pipeline transfers
_MAX_GRACE_S = 5.0


@dataclass(frozen=True)
class WatchdogConfig:
    """When a run counts as hung, and what becomes of it then.

    Attributes:
        timeout_s: without a finished step, validation pass or checkpoint; must be longer than the longest of these.
            None: nobody watches.
        aborts: end the process after its stack is written, with status 75, which a batch file takes as a wish to be
            started anew. Otherwise the process group's own timeout (30 minutes) ends it.
    """

    timeout_s: float | None = 1200.0
    aborts: bool = False

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"watchdog.timeout_s = {self.timeout_s}: must be above 0, or null for no watchdog")


class Standing(NamedTuple):
    """Where a rank's main thread is: the first line of its file.

    Attributes:
        rank: of it.
        waits: in a collective, for others.
        place: innermost line of Python.
    """

    rank: int
    waits: bool
    place: str

    def __str__(self) -> str:
        return f"rank {self.rank} {'waits' if self.waits else 'is'} at {self.place}"


class Watchdog:
    """Use as a context manager around the loop, in the main thread, and call `alive` after each piece of work.

    Args:
        config: when and what.
        run: run directory; stacks go to `stacks/rank_<N>.txt`.
        rank: of this process.
        world_size: processes in all.
    """

    def __init__(self, config: WatchdogConfig, run: Path, rank: int, world_size: int) -> None:
        self.config, self.directory, self.rank, self.world_size = config, run / "stacks", rank, world_size
        self.main = threading.get_ident()
        self.over = threading.Event()
        self.alive("the run's start")

    def __enter__(self) -> Watchdog:
        if self.config.timeout_s is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()

    def alive(self, what: str) -> None:
        """Say that `what` is finished."""
        self.last, self.seen_s, self.reported = what, time.monotonic(), False

    def _watch(self) -> None:
        timeout_s = self.config.timeout_s
        assert timeout_s is not None
        while not self.over.wait(min(timeout_s / 10, 5.0)):
            if not self.reported and time.monotonic() - self.seen_s > timeout_s:
                self.reported = True  # once a hang
                self._report(timeout_s)

    def _report(self, timeout_s: float) -> None:
        headline = f"nothing finished for {time.monotonic() - self.seen_s:.0f} s; the last was {self.last}"
        self._write_stack(headline)
        if self.over.wait(min(timeout_s, _MAX_GRACE_S)):  # until all have written theirs
            return
        if self.rank == 0:
            late = late_ranks(self.directory, self.world_size, within_s=timeout_s)
            who = "; ".join(late) or "all ranks stand alike"
            print(f"watchdog: {headline}. {who}. Stacks: {self.directory}", file=sys.stderr, flush=True)
        if self.config.aborts and not self.over.wait(1.0) and self.reported:  # rank 0 has spoken, and it still hangs
            os._exit(STOPPED)

    def _write_stack(self, headline: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self.directory / f"rank_{self.rank}.partial"
        with partial.open("w") as file:
            print(_standing(self.rank, self.main), headline, sep="\n", end="\n\n", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        partial.replace(self.directory / f"rank_{self.rank}.txt")


def late_ranks(directory: Path, world_size: int, within_s: float) -> list[str]:
    """Sentences on the ranks that the others wait for, from the files of all.

    These are ranks without a file, else those that are in no collective while others are, else those that stand
    where fewest do.

    Args:
        directory: of the files.
        world_size: ranks in all.
        within_s: a file that is older than the newest by more is of an earlier hang.
    """
    paths = {rank: directory / f"rank_{rank}.txt" for rank in range(world_size)}
    written_s = {rank: path.stat().st_mtime for rank, path in paths.items() if path.exists()}
    newest_s = max(written_s.values(), default=0.0)
    present = [_read(paths[rank], rank) for rank, time_s in written_s.items() if newest_s - time_s <= within_s]
    silent = sorted(paths.keys() - {found.rank for found in present})
    working = [found for found in present if not found.waits]
    if silent or 0 < len(working) < len(present):
        return [f"rank {rank} wrote nothing: it is dead or stopped" for rank in silent] + [str(w) for w in working]
    places = Counter(found.place for found in present).most_common()
    fewest = places[-1][1]
    return [str(f) for f in present if (f.place, fewest) in places] if fewest < places[0][1] else []


def _standing(rank: int, thread: int) -> Standing:
    frame: FrameType | None = sys._current_frames().get(thread)
    if frame is None:
        return Standing(rank, False, "nowhere: its main thread has ended")
    place = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
    waits = False
    while frame is not None and not waits:
        waits = os.path.basename(frame.f_code.co_filename) in _WAITING_FILES
        frame = frame.f_back
    return Standing(rank, waits, place)


def _read(path: Path, rank: int) -> Standing:
    line = path.read_text().splitlines()[0]
    how, place = line.removeprefix(f"rank {rank} ").split(" at ", 1)
    return Standing(rank, how == "waits", place)
