"""What several tests of training start from."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tiny data set."""
    from tests.training.tiny_run import write_data  # Megatron: not for the tests that do without

    directory = tmp_path_factory.mktemp("data")
    write_data(directory)
    return directory
