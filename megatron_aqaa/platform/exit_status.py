"""What a process tells those who started it."""

STOPPED = 75
"""Stopped by a signal after saving; the same command continues. EX_TEMPFAIL of sysexits.h, "try again later"."""
