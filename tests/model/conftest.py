"""One gloo process for the unit tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from megatron_aqaa import platform
from megatron_aqaa.platform import ParallelConfig


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    platform.initialize(ParallelConfig(), seed=0)
    yield
    platform.shutdown()
