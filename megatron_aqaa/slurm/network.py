"""Clocks and bandwidth between the nodes of a job."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_aqaa import platform
from megatron_aqaa.platform.gpus import finish_gpu_work
from megatron_aqaa.slurm.config import PreflightConfig
from megatron_aqaa.slurm.place import Place

_TIMES = 3
"""Measurements of each kind, after one that warms up; the best counts for bandwidth, the median for clocks."""


@dataclass(frozen=True)
class Network:
    """What was measured; the same on all processes.

    Attributes:
        skew_s: of each node's clock, from the median node.
        all_reduce_gb_per_s: bus bandwidth over all processes, 2 (n − 1) / n of the message per second; None for one.
        link_gb_per_s: of each node to its neighbours, one or two values; empty for a single node.
    """

    skew_s: dict[str, float]
    all_reduce_gb_per_s: float | None
    link_gb_per_s: dict[str, list[float]]

    def problems(self, limits: PreflightConfig) -> list[str]:
        """Which node is beyond which limit."""
        found = [
            f"{node}: clock is {skew_s:+.3f} s off, at most {limits.max_clock_skew_s:g} s allowed: is NTP running?"
            for node, skew_s in self.skew_s.items()
            if limits.max_clock_skew_s and abs(skew_s) > limits.max_clock_skew_s
        ]
        found += [
            f"{node}: {max(rates):.3g} GB/s to the better of its neighbours, {limits.min_link_gb_per_s:g} wanted"
            for node, rates in self.link_gb_per_s.items()
            if max(rates) < limits.min_link_gb_per_s
        ]
        rate = self.all_reduce_gb_per_s
        if rate is not None and rate < limits.min_all_reduce_gb_per_s:
            slowest = min(self.link_gb_per_s, key=lambda node: max(self.link_gb_per_s[node]), default="this node")
            wanted = limits.min_all_reduce_gb_per_s
            found.append(f"{slowest}: slowest node of an all-reduce at {rate:.3g} GB/s, {wanted:g} wanted")
        return found

    def summary(self) -> str:
        """One line for the log."""
        parts = [f"clocks within {max(self.skew_s.values()) - min(self.skew_s.values()):.3f} s"]
        if self.all_reduce_gb_per_s is not None:
            parts.append(f"all-reduce {self.all_reduce_gb_per_s:.3g} GB/s")
        if self.link_gb_per_s:
            node = min(self.link_gb_per_s, key=lambda name: max(self.link_gb_per_s[name]))
            parts.append(f"slowest node {node} with {max(self.link_gb_per_s[node]):.3g} GB/s")
        return ", ".join(parts)


def measure(place: Place, message_mib: int) -> Network:
    """Measure everything; all processes of an initialised group call this."""
    skew_s = node_skew(_clocks(place.world_size), place.nodes)
    message = torch.ones(message_mib << 18, device=platform.device())
    if place.world_size == 1:
        return Network(skew_s, None, {})
    seconds = max(_gather(_best_s(lambda: dist.all_reduce(message)), place.world_size))
    sent = 2 * (place.world_size - 1) / place.world_size * message.nbytes
    return Network(skew_s, sent / seconds / 1e9, _links(place, message))


def node_skew(clocks_s: Sequence[float], nodes: Sequence[str]) -> dict[str, float]:
    """How far each node's clock is from the median node's.

    Args:
        clocks_s: of each rank at one moment, node by node.
        nodes: their names.
    """
    each = len(clocks_s) // len(nodes)
    by_node = [statistics.median(clocks_s[index * each : (index + 1) * each]) for index in range(len(nodes))]
    middle = statistics.median_low(by_node)  # of an actual node: with two, one is right
    return {node: clock_s - middle for node, clock_s in zip(nodes, by_node, strict=True)}


def neighbours(num_nodes: int, turn: int) -> dict[int, int]:
    """Who exchanges with whom in turn 0 and 1: together every node meets its neighbours in a ring.

    With an odd number of nodes one of them rests in each turn, never the same; two nodes have one turn.
    """
    if num_nodes < 2 or (num_nodes == 2 and turn):
        return {}
    firsts = range(turn, num_nodes - 1 + (num_nodes % 2 == 0) * turn, 2)
    pairs = [(first, (first + 1) % num_nodes) for first in firsts]
    return {a: b for pair in pairs for a, b in (pair, pair[::-1])}


def _clocks(world_size: int) -> list[float]:
    """Of each rank at about one moment: offsets from rank 0, the median over several barriers."""
    rounds = []
    for _ in range(_TIMES):
        dist.barrier()
        clocks_s = _gather(time.time(), world_size)
        rounds.append([clock_s - clocks_s[0] for clock_s in clocks_s])
    return [statistics.median(offsets) for offsets in zip(*rounds, strict=True)]


def _links(place: Place, message: torch.Tensor) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {node: [] for node in place.nodes}
    for turn in (0, 1):
        pairs = neighbours(len(place.nodes), turn)
        mine = pairs.get(place.rank // place.per_node)
        peer = None if mine is None else mine * place.per_node + place.local_rank
        dist.barrier()
        seconds = 0.0 if peer is None else _best_s(lambda peer=peer: _swap(message, peer))  # type: ignore[misc]
        by_rank = _gather(message.nbytes / seconds / 1e9 if seconds else 0.0, place.world_size)
        for index in pairs:
            rates[place.nodes[index]].append(sum(by_rank[index * place.per_node : (index + 1) * place.per_node]))
    return {node: values for node, values in rates.items() if values}


def _swap(message: torch.Tensor, peer: int) -> None:
    received = torch.empty_like(message)
    operations = [dist.P2POp(dist.isend, message, peer), dist.P2POp(dist.irecv, received, peer)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


def _best_s(action: Callable[[], object]) -> float:
    action()
    seconds = []
    for _ in range(_TIMES):
        finish_gpu_work()
        started_s = time.perf_counter()
        action()
        finish_gpu_work()
        seconds.append(time.perf_counter() - started_s)
    return min(seconds)


def _gather(value: float, world_size: int) -> list[float]:
    """A number of each rank, in full precision, over the CPU."""
    values = [torch.zeros(1, dtype=torch.float64) for _ in range(world_size)]
    dist.all_gather(values, torch.tensor([value], dtype=torch.float64))
    return [float(item) for item in values]
