"""Skips what this machine cannot run, with the reason."""

from __future__ import annotations

import signal

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; this machine has none"))


def pytest_sessionstart() -> None:
    # A shell ignores SIGINT for what it starts in the background, `nohup` ignores SIGHUP, and children inherit that:
    # tests of ctrl-C and of a closed terminal would hang.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
