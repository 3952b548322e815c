"""Files that get their names when they are whole, written by threads that end together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.elements import write_fully
from megatron_aqaa.checkpoint.output_files import (
    OutputFile,
    Region,
    byte_counter,
    region_name,
    region_threads,
    written_whole,
)

FILE = OutputFile("folder/file", 8, (Region("x", Box((4, 0), (1, 4)), 2),), ((0, b"ab"), (6, b"yz")))


def test_a_file_is_whole_when_it_has_its_name(tmp_path: Path):
    path = tmp_path / FILE.name
    with written_whole(path, FILE) as descriptor:
        write_fully(descriptor, b"1234", FILE.regions[0].start)
        assert not path.exists()
    assert path.read_bytes() == b"ab1234yz" and [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_file_that_was_given_up_never_gets_it(tmp_path: Path):
    path = tmp_path / FILE.name
    path.parent.mkdir()
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), written_whole(path, FILE):
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"


def test_a_region_is_named_by_tensor_and_place():
    assert region_name(FILE.regions[0]) == "x[4, 0]"


def test_an_error_stops_the_other_threads_and_leaves_torch_as_it_was():
    before, started, stopped = torch.get_num_threads(), threading.Event(), []

    def wait(stop: threading.Event) -> None:
        started.set()
        stopped.append(stop.wait(60))

    def fail() -> None:
        with region_threads(2) as (pool, stop):
            pool.submit(wait, stop)
            assert pool.submit(torch.get_num_threads).result() == 1
            started.wait(60)
            raise ValueError("this one")

    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="this one"):
            fail()
        assert stopped == [True] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_count_together():
    reports: list[int] = []
    advance = byte_counter(5, reports.append)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(advance, [3] * 200))
    assert reports == list(range(8, 606, 3))
