"""One cluster for all tests of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm import cluster as local_cluster
from tests.slurm.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = local_cluster.reason_to_skip()
    if reason:
        pytest.skip(reason)
    with local_cluster.running() as started:
        yield started
    assert not local_cluster.processes(started.folder)
    assert not started.folder.exists()
