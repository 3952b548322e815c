"""One rank's slice of a layer: its sizes, and seconds of a product, a copy and a transfer there.

A product is cut into tiles, which the GPU's processors work on in waves; the last wave is seldom full (NVIDIA, "Matrix
Multiplication Background User's Guide", section 3). To whole waves at the sustained rate come a fixed overhead and part
of the time that the output needs to reach memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from megatron_aqaa.planner.cluster import Cluster
from megatron_aqaa.planner.plan import Plan, Software
from megatron_aqaa.planner.planned_model import BYTES, PlannedModel

TILES = ((128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.95), (128, 64, 0.9), (64, 128, 0.9))
"""(rows, columns, share of the rate) that a product may be cut into; the fastest is taken. Large tiles load less. The
shares follow openxla/xla's table of single products on sm_90, which the tests hold against this."""
MICRO = 1e-6


@dataclass(frozen=True)
class Seconds:
    """Where time goes; communication as far as nothing hides it."""

    products: float = 0.0
    attention: float = 0.0
    small: float = 0.0
    tensor: float = 0.0
    context: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(*(part * factor for part in self.parts))

    @property
    def parts(self) -> tuple[float, ...]:
        """In order of the fields."""
        return self.products, self.attention, self.small, self.tensor, self.context

    @property
    def total(self) -> float:
        """Sum of all."""
        return sum(self.parts)


@dataclass(frozen=True)
class Slice:
    """What decides a layer's time on one rank."""

    model: PlannedModel
    tensor_size: int
    context_size: int
    sequence_parallel: bool
    tensor_overlap: bool
    sequence_length: int
    micro_batch_size: int
    cluster: Cluster
    software: Software = Software()

    @classmethod
    def of(cls, plan: Plan, cluster: Cluster, software: Software) -> Slice:
        """Of the layers of `plan`."""
        layout, batch = plan.layout, plan.batch
        return cls(
            plan.model,
            layout.tensor_model_parallel_size,
            layout.context_parallel_size,
            layout.sequence_parallel,
            layout.tp_comm_overlap,
            batch.sequence_length,
            batch.micro_batch_size,
            cluster,
            software,
        )

    @cached_property
    def tokens(self) -> int:
        """Tokens that a product sees."""
        return self.micro_batch_size * self.sequence_length // self.context_size

    @cached_property
    def element(self) -> int:
        """Bytes of an activation."""
        return BYTES[self.model.params_dtype]

    @cached_property
    def hidden_bytes(self) -> int:
        """Bytes of the residual stream of `tokens`."""
        return self.tokens * self.model.hidden_size * self.element

    @cached_property
    def residual_bytes(self) -> float:
        """Of it, what one rank's norms and adds work on."""
        return self.hidden_bytes / (self.tensor_size if self.sequence_parallel else 1)

    @cached_property
    def matrices(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of this rank's qkv, projection, fc1, fc2."""
        (qkv, h), (_, query), (fc1, _), (_, ffn) = self.model.layer_matrices
        t = self.tensor_size
        return [(qkv // t, h), (h, query // t), (fc1 // t, h), (h, ffn // t)]

    def product_s(self, rows: int, columns: int, inner: int, output_bytes: int, dtype: str | None = None) -> float:
        """Seconds of [rows, inner] × [inner, columns]."""
        cluster = self.cluster
        dtype = dtype or self.model.matmul_dtype
        operations = 2.0 * inner * min(_wave_area(rows, columns, tile, cluster.num_processors) for tile in TILES)
        output_s = self.memory_s(float(rows) * columns * output_bytes)
        overhead_s = cluster.gemm_overhead_us * MICRO + cluster.gemm_output_exposed * output_s
        return operations / cluster.sustained(dtype) + overhead_s

    def memory_s(self, num_bytes: float) -> float:
        """Seconds to move so many bytes in or out of GPU memory."""
        return num_bytes / (self.cluster.memory_gbs * 1e9)

    def collective_s(self, num_bytes: float) -> float:
        """Seconds of an all-gather or reduce-scatter over the tensor-parallel ranks."""
        return self.cluster.collective_s(num_bytes, self.tensor_size, 1)


def _wave_area(rows: int, columns: int, tile: tuple[int, int, float], num_processors: int) -> float:
    """Output elements that whole waves of tiles could have computed in the time, at the full rate."""
    height, width, share = tile
    waves = math.ceil(math.ceil(rows / height) * math.ceil(columns / width) / num_processors)
    return waves * num_processors * height * width / share
