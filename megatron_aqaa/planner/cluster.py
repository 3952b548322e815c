"""A cluster as its YAML describes it: sizes, rates that were measured, and what overlap costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_aqaa.config import load_config

GIB = 1 << 30


@dataclass(frozen=True)
class AttentionRate:
    """Rate of an attention kernel over the causal half's operations: `limit · length / (length + half_length)`."""

    forward_tflops: float
    backward_tflops: float
    half_length: float


@dataclass(frozen=True, eq=False)  # told apart by identity: a key of cached times
class Cluster:
    """GPUs, nodes and the rates that a step is timed with. TFLOP/s, GB/s (10⁹ bytes, one direction, per GPU), µs.

    Attributes:
        name: of the GPU.
        nodes: of the cluster.
        gpus_per_node: joined by NVLink.
        num_processors: streaming multiprocessors of one GPU.
        memory_gib: of one GPU.
        reserved_gib: of it, what is not the model's: context, communication buffers, fragmentation.
        peak_tflops: by dtype, from the data sheet; MFU is a share of it.
        sustained_tflops: by dtype, of large matrix products in long runs.
        slowest_gpu_per_doubling: all wait for the slowest of N GPUs: share of time that each doubling of N adds.
        gemm_overhead_us: of each product beyond its operations.
        gemm_output_exposed: share of the time for moving a product's output that its operations do not hide.
        kernel_overhead_us: of each small kernel.
        memory_gbs: of a copy in GPU memory, both directions together.
        nvlink_gbs: a GPU's share of a collective inside a node.
        nvlink_latency_us: of a collective inside a node.
        network_gbs: of one GPU's NIC.
        network_latency_us: of a collective between nodes.
        nvlink_overlap_cost: share of the GPU that a hidden NVLink transfer takes from the products that hide it.
        network_overlap_cost: the same of a network transfer.
        attention: by kernel, "flash" and "flex".
    """

    name: str
    nodes: int
    gpus_per_node: int
    num_processors: int
    memory_gib: float
    reserved_gib: float
    peak_tflops: dict[str, float]
    sustained_tflops: dict[str, float]
    slowest_gpu_per_doubling: float
    gemm_overhead_us: float
    gemm_output_exposed: float
    kernel_overhead_us: float
    memory_gbs: float
    nvlink_gbs: float
    nvlink_latency_us: float
    network_gbs: float
    network_latency_us: float
    nvlink_overlap_cost: float
    network_overlap_cost: float
    attention: dict[str, AttentionRate]

    @property
    def num_gpus(self) -> int:
        """GPUs of the cluster."""
        return self.nodes * self.gpus_per_node

    @property
    def usable_bytes(self) -> float:
        """Bytes of a GPU that a model may fill."""
        return (self.memory_gib - self.reserved_gib) * GIB

    def peak(self, dtype: str) -> float:
        """FLOP/s of the data sheet."""
        return self._rate(self.peak_tflops, "peak_tflops", dtype)

    def sustained(self, dtype: str) -> float:
        """FLOP/s of large products."""
        return self._rate(self.sustained_tflops, "sustained_tflops", dtype)

    def attention_rate(self, kernel: str) -> AttentionRate:
        """Rate of the attention kernel of this name."""
        if kernel not in self.attention:
            raise ValueError(f"{self.name}: attention has no rate for {kernel!r}, only {', '.join(self.attention)}")
        return self.attention[kernel]

    def collective_s(self, num_bytes: float, size: int, span: int) -> float:
        """Seconds of an all-gather or reduce-scatter of `num_bytes` in all over `size` ranks.

        Args:
            num_bytes: of the whole, gathered tensor.
            size: ranks of the group.
            span: consecutive ranks that a group's neighbours are apart: the product of the sizes that vary faster.
        """
        if size == 1:
            return 0.0
        in_node = self.in_node(size, span)
        latency = self.nvlink_latency_us if in_node else self.network_latency_us
        return latency * 1e-6 + num_bytes * (size - 1) / size / (self._bandwidth(size, span) * 1e9)

    def in_node(self, size: int, span: int) -> bool:
        """Whether a group stays inside a node."""
        return size * span <= self.gpus_per_node

    def overlap_cost(self, size: int, span: int) -> float:
        """Share of the GPU that a hidden transfer of a group takes."""
        return self.nvlink_overlap_cost if self.in_node(size, span) else self.network_overlap_cost

    def network_s(self, num_bytes: float) -> float:
        """Seconds of a transfer to the neighbouring pipeline stage, on another node."""
        return num_bytes / (self.network_gbs * 1e9)

    def _bandwidth(self, size: int, span: int) -> float:
        """A ring through `members` GPUs of a node leaves it by as many NICs at once."""
        if self.in_node(size, span):
            return self.nvlink_gbs
        members = max(1, self.gpus_per_node // span)
        return min(self.nvlink_gbs, self.network_gbs * members)

    def _rate(self, rates: dict[str, float], name: str, dtype: str) -> float:
        if dtype not in rates:
            raise ValueError(f"{self.name}: {name} has no rate for {dtype}, only {', '.join(rates)}")
        return rates[dtype] * 1e12


def load_cluster(path: str | Path) -> Cluster:
    """Read a cluster's YAML.

    Raises:
        ValueError: unknown, missing or wrong keys; sizes that are not positive.
    """
    cluster = load_config(Cluster, path)
    for name in ("nodes", "gpus_per_node", "memory_gib", "memory_gbs", "nvlink_gbs", "network_gbs"):
        if getattr(cluster, name) <= 0:
            raise ValueError(f"{path}: {name} = {getattr(cluster, name)}: must be above 0")
    return cluster
