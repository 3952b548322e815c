"""One chain at a time in a run directory."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Hold `directory/lock`; gives the descriptor that holds it.

    A process that inherits the descriptor holds the lock with us. So a stage that outlives a killed parent keeps the
    next run from writing beside it.

    Raises:
        ValueError: someone else holds it.
    """
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{directory}: another run is at work here, or a stage of one that was killed. Wait for it, or find "
                f"it with `fuser {file.name}`"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield file.fileno()
