"""One cluster for all tests of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm import daemons
from tests.slurm.cluster import Cluster
from tests.slurm.guard import processes


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = daemons.reason_to_skip()
    if reason:
        pytest.skip(reason)
    with daemons.running() as started:
        yield started
    assert not processes(started.folder)
    assert not started.folder.exists()
