"""The look at every node: what is wrong comes out with the node's name, also where a node is silent."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_aqaa.slurm.answers import Answers, meet
from megatron_aqaa.slurm.config import PreflightConfig
from megatron_aqaa.slurm.network import Network, neighbours, node_skew
from megatron_aqaa.slurm.node_checks import gpu_problems, path_problems
from megatron_aqaa.slurm.place import Place

NODES = ("n1", "n2")


def place(rank: int, port: int = 0) -> Place:
    return Place(rank, rank % 2, NODES, 4, "127.0.0.1", port)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def exchanged(ranks: dict[int, list[str]], timeout_s: float = 20.0) -> list[list[str]]:
    """What each of these ranks learns; the others are not there."""
    port = free_port()

    def one(rank: int) -> list[str]:
        return Answers(meet(place(rank, port), timeout_s), place(rank, port), timeout_s).exchange("x", ranks[rank])

    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(one, ranks))


def test_everyone_learns_what_anyone_found() -> None:
    found = exchanged({0: [], 1: ["no disk"], 2: [], 3: ["no disk"]})
    assert found == [["n1: no disk", "n2: no disk"]] * 4
    assert exchanged({0: [], 1: [], 2: [], 3: []}) == [[]] * 4


def test_the_same_of_two_processes_is_said_once() -> None:
    assert exchanged({0: [], 1: [], 2: ["x"], 3: ["x"]})[0] == ["n2: x"]


def test_a_node_that_does_not_answer_is_named() -> None:
    assert (
        exchanged({0: [], 1: ["no disk"]}, timeout_s=1.5)
        == [["n1: no disk", "n2: rank 2, 3 did not answer in 1.5 s"]] * 2
    )


def test_an_unreachable_first_node_is_named() -> None:
    with pytest.raises(ValueError, match=r"n2: rank 2 cannot reach n1 at 127.0.0.1:\d+: "):
        meet(place(2, free_port()), timeout_s=1.0)


def test_a_taken_port_is_named() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    with pytest.raises(ValueError, match=f"n1: rank 0 cannot listen at 127.0.0.1:{store.port}: "):
        meet(place(0, store.port), timeout_s=1.0)


def test_paths_are_tried_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE", "n2")
    (tmp_path / "n2").write_text("x")
    fine, none = PreflightConfig(), PreflightConfig(min_free_disk_gb=1e9)
    assert path_problems([f"{tmp_path}/$NODE", str(tmp_path)], [f"{tmp_path}/new/run"], fine) == []
    assert list((tmp_path / "new" / "run").iterdir()) == []
    (problem,) = path_problems([f"{tmp_path}/${{NODE}}x"], [], fine)
    assert problem == f"cannot read {tmp_path}/n2x: No such file or directory"
    (problem,) = path_problems([], [f"{tmp_path}/n2/run"], fine)
    assert problem == f"cannot write into {tmp_path}/n2/run: Not a directory"
    (problem,) = path_problems([], [str(tmp_path)], none)
    assert f"GB are free at {tmp_path}, 1e+09 wanted" in problem


def test_a_file_system_that_takes_no_files_is_named() -> None:
    (problem,) = path_problems([], ["/proc"], PreflightConfig())
    assert problem.startswith("cannot write into /proc: ")


def test_missing_gpus_are_counted() -> None:
    assert gpu_problems(0, 0.0) == []
    (problem,) = gpu_problems(99, 0.0)
    assert "GPUs can be used, 99 were asked for" in problem


@pytest.mark.parametrize("num_nodes", [2, 3, 4, 7, 8])
def test_every_node_meets_its_neighbours(num_nodes: int) -> None:
    met: dict[int, set[int]] = {node: set() for node in range(num_nodes)}
    for turn in (0, 1):
        pairs = neighbours(num_nodes, turn)
        assert all(pairs[b] == a for a, b in pairs.items())
        for a, b in pairs.items():
            met[a].add(b)
    ring = {node: {(node - 1) % num_nodes, (node + 1) % num_nodes} for node in range(num_nodes)}
    assert all(met[node] and met[node] <= ring[node] for node in ring)
    assert sum(map(len, met.values())) == (2 if num_nodes == 2 else 2 * num_nodes - 2 * (num_nodes % 2))


def test_one_node_meets_nobody() -> None:
    assert neighbours(1, 0) == neighbours(1, 1) == {}


def test_a_clock_is_judged_by_the_median_node() -> None:
    skew_s = node_skew([100.0, 100.2, 103.0, 103.0, 100.1, 100.1], ("a", "b", "c"))
    assert skew_s == pytest.approx({"a": 0.0, "b": 2.9, "c": 0.0})
    problems = Network(skew_s, None, {}).problems(PreflightConfig())
    assert problems == ["b: clock is +2.900 s off, at most 2 s allowed: is NTP running?"]
    assert Network(skew_s, None, {}).problems(PreflightConfig(max_clock_skew_s=0)) == []


def test_a_slow_node_is_told_from_its_neighbours() -> None:
    network = Network(dict.fromkeys("abcd", 0.0), 30.0, {"a": [50.0, 4.0], "b": [50.0, 49.0], "c": [4.0, 5.0]})
    assert network.problems(PreflightConfig()) == []
    assert network.problems(PreflightConfig(min_link_gb_per_s=20)) == [
        "c: 5 GB/s to the better of its neighbours, 20 wanted"
    ]
    assert network.problems(PreflightConfig(min_all_reduce_gb_per_s=40)) == [
        "c: slowest node of an all-reduce at 30 GB/s, 40 wanted"
    ]
    assert network.summary() == "clocks within 0.000 s, all-reduce 30 GB/s, slowest node c with 5 GB/s"


def test_the_place_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "20001"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    found = Place.from_environment(NODES)
    assert found == Place(3, 1, NODES, 4, "10.0.0.1", 20001)
    assert [found.node_of(rank) for rank in range(4)] == ["n1", "n1", "n2", "n2"]
    with pytest.raises(ValueError, match="4 processes are not spread evenly over 3 nodes"):
        Place.from_environment(("a", "b", "c"))
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="RANK is not set"):
        Place.from_environment(NODES)
