"""The directory that a merge or a conversion writes to: room on its disk, and one process at a time."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SPARE_BYTES = 32 << 20  # for the files beside the weights


@contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """Hold the directory. The lock is on itself: a file for it would stay in the result.

    Raises:
        ValueError: another process holds it.
    """
    descriptor = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"{output}: another process is at work here; wait for it, or name another output") from None
    except OSError:  # a file system without locks, or NFS, which locks no directory
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def check_disk(output: Path, num_bytes: int) -> None:
    """Raise ValueError unless `num_bytes` more fit on the disk of `output`."""
    wanted = num_bytes + _SPARE_BYTES
    existing = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted:
        raise ValueError(f"{output}: the result needs {math.ceil(wanted / 1e6)} MB, {free // 1_000_000} MB are free "
                         "there; make room, or name an output elsewhere")  # fmt: skip
