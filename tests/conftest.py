"""Skips what this machine cannot run, with the reason; lets go of the models of tests that are over."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

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


@pytest.fixture(autouse=True)
def _let_go_of_models() -> Iterator[None]:
    """Megatron's DDP is never freed: its hooks hang on gradient accumulators, which Python's collector does not see.

    With it stay the process groups of its model, fifty gloo threads that wake a hundred times a second: after ninety
    tests a worker had 4,287 of them, and two thirds of both cores went to waking them.
    """
    yield
    if len(list(Path("/proc/self/task").iterdir())) < 300 or torch.distributed.is_initialized():
        return
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__qualname__.startswith("DistributedDataParallel._make_backward"):
            for cell in thing.__closure__ or ():
                cell.cell_contents = None
    gc.collect()
