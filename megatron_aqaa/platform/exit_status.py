"""What a process tells those who started it."""

STOPPED = 75
"""Stopped by a signal after saving; the same command continues. EX_TEMPFAIL of sysexits.h, "try again later"."""

REJECTED = 65
"""Done, but some of the input was set aside. EX_DATAERR of sysexits.h; 1 would be taken for a crash of Python."""


def after_rejects(num_rejected: int, num_all: int, max_ratio: float) -> int:
    """Status of a batch job: 0 without rejects, `REJECTED` up to a share of `max_ratio`, 1 above it."""
    if num_rejected > max_ratio * num_all:
        return 1
    return REJECTED if num_rejected else 0
