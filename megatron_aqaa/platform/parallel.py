"""Process groups: how many processes split the model, and how they meet."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_aqaa.platform import cpu
from megatron_aqaa.platform.device import has_gpu, select_device

MEGATRON_CORE_VERSION = "0.16.1"


@dataclass(frozen=True)
class ParallelConfig:
    """How one model is split over processes; what is left of the processes is data parallel. Megatron's names.

    Attributes:
        tensor_model_parallel_size: processes that share each layer's matrices.
        pipeline_model_parallel_size: processes that share the layers.
        virtual_pipeline_model_parallel_size: stages per process, for the interleaved schedule; None for one.
        context_parallel_size: processes that share each sequence.
        sequence_parallel: split norms and residuals over the tensor-parallel processes too.
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int = 1
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"parallel.{name} = {getattr(self, name)}: must be at least 1")
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ValueError("parallel.sequence_parallel needs tensor_model_parallel_size of at least 2; switch it off")
        virtual = self.virtual_pipeline_model_parallel_size
        if virtual is not None and (virtual < 2 or self.pipeline_model_parallel_size == 1):
            raise ValueError(
                f"parallel.virtual_pipeline_model_parallel_size = {virtual}: must be at least 2, with "
                "pipeline_model_parallel_size of at least 2; leave it out for one stage per process"
            )

    @property
    def model_parallel_size(self) -> int:
        """Processes that hold one copy of the model and one sequence."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size


def initialize(parallel: ParallelConfig, seed: int = 0, timeout_s: float = 1800.0) -> None:
    """Join the processes that `torchrun` started, or be the only one; then build Megatron's groups and seed.

    May be called again with another layout over the same processes.

    Args:
        parallel: the layout.
        seed: of initial weights and dropout; pipeline stages get different ones.
        timeout_s: how long a collective may wait for the other processes.

    Raises:
        ValueError: the number of processes does not suit the layout.
        RuntimeError: another Megatron-Core than this project is written for, or psutil is missing.
    """
    _check_packages()
    cpu.install()
    from megatron.core import parallel_state, tensor_parallel  # takes seconds: not at import

    select_device()
    _join(timedelta(seconds=timeout_s))
    world_size = dist.get_world_size()
    if world_size % parallel.model_parallel_size:
        shutdown()
        raise ValueError(
            f"{world_size} processes cannot hold copies of a model over {parallel.model_parallel_size}: start a "
            "multiple (`torchrun --nproc-per-node N`) or lower the sizes under `parallel`"
        )
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        create_gloo_process_groups=has_gpu(),  # on the CPU every group is one already
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed + 100 * parallel_state.get_pipeline_model_parallel_rank())


def shutdown() -> None:
    """Leave the groups; a gloo process that ends without this may abort (exit status −6)."""
    if dist.is_initialized():
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _check_packages() -> None:
    found = importlib.metadata.version("megatron-core")
    if found != MEGATRON_CORE_VERSION:
        raise RuntimeError(
            f"megatron-core {found} is installed; this project overrides methods of {MEGATRON_CORE_VERSION}: "
            f"`pip install --no-deps megatron-core=={MEGATRON_CORE_VERSION}`"
        )
    if importlib.util.find_spec("psutil") is None:
        raise RuntimeError("psutil is missing: without it Megatron's checkpoint writer waits for ever; install it")


def _join(timeout: timedelta) -> None:
    if dist.is_initialized():
        return
    backend = "nccl" if has_gpu() else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def zigzag_order(parts: int) -> list[int]:
    """Order of `2 · parts` sequence chunks when laid out rank by rank: rank r holds chunks r and 2·parts − 1 − r.

    Causal attention costs more for later queries; the pairing gives every context-parallel rank the same work.
    """
    return [chunk for rank in range(parts) for chunk in (rank, 2 * parts - 1 - rank)]


def zigzag_shard(sequence: Tensor, dim: int, rank: int, parts: int) -> Tensor:
    """Part of `sequence` that context-parallel `rank` of `parts` works on.

    Raises:
        ValueError: the length is not a multiple of `2 · parts`.
    """
    if parts == 1:
        return sequence
    if sequence.shape[dim] % (2 * parts):
        raise ValueError(f"length {sequence.shape[dim]} must be a multiple of 2 × context_parallel_size = {2 * parts}")
    chunks = sequence.chunk(2 * parts, dim)
    return torch.cat([chunks[rank], chunks[2 * parts - 1 - rank]], dim)
