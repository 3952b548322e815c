"""One gloo process for the operators that talk to other ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from megatron_aqaa import platform


@pytest.fixture(scope="module")
def group() -> Iterator[dist.ProcessGroup]:
    platform.initialize(platform.ParallelConfig())
    yield dist.group.WORLD
    platform.shutdown()
