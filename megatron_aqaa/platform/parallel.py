"""Process groups: how many processes split the model, and how they meet."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_aqaa.platform import cpu
from megatron_aqaa.platform.device import has_gpu, select_device
from megatron_aqaa.platform.pipeline_layout import pipeline_stages

MEGATRON_CORE_VERSION = "0.16.1"
_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"


@dataclass(frozen=True)
class ParallelConfig:
    """How one model is split over processes; what is left of the processes is data parallel. Megatron's names.

    Attributes:
        tensor_model_parallel_size: processes that share each layer's matrices.
        pipeline_model_parallel_size: processes that share the layers.
        virtual_pipeline_model_parallel_size: stages per process, for the interleaved schedule; None for one.
        context_parallel_size: processes that share each sequence.
        sequence_parallel: split norms and residuals over the tensor-parallel processes too.
        pipeline_model_parallel_layout: layers of each stage, see `platform.pipeline_layout`; None for equal stages with
            the embedding in the first and the head in the last.
        overlap_grad_reduce: sum gradients over the data-parallel processes bucket by bucket, during backward.
        overlap_param_gather: collect updated weights bucket by bucket, during the next forward pass. Until then a
            process has only its share of them: see `training.optimizer.gather_weights`.
        tp_comm_overlap: tensor-parallel transfers during products, by Transformer Engine. Configured, never executed.
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int = 1
    sequence_parallel: bool = False
    pipeline_model_parallel_layout: str | None = None
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    tp_comm_overlap: bool = False

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
        self._check_layout()
        if self.overlap_param_gather and not self.overlap_grad_reduce:
            raise ValueError("parallel.overlap_param_gather needs overlap_grad_reduce: true, whose buckets it collects")
        if self.tp_comm_overlap and not self.sequence_parallel:
            raise ValueError("parallel.tp_comm_overlap needs sequence_parallel: true, whose transfers it hides")

    def _check_layout(self) -> None:
        layout = self.pipeline_model_parallel_layout
        if layout is None:
            return
        found = len(pipeline_stages(layout))
        if self.pipeline_model_parallel_size == 1 or found != self.num_stages:
            raise ValueError(
                f"parallel.pipeline_model_parallel_layout = {layout!r} has {found} stages, but "
                f"pipeline_model_parallel_size × virtual_pipeline_model_parallel_size is "
                f"{self.pipeline_model_parallel_size} × {self.virtual_pipeline_model_parallel_size or 1}, of which the "
                "first must be at least 2"
            )

    @property
    def model_parallel_size(self) -> int:
        """Processes that hold one copy of the model and one sequence."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @property
    def num_stages(self) -> int:
        """Pipeline stages of all processes together, in the order in which a sequence passes through them."""
        return self.pipeline_model_parallel_size * (self.virtual_pipeline_model_parallel_size or 1)

    def layers_by_stage(self, num_layers: int) -> tuple[int, ...]:
        """Layers of each of the `num_stages` stages; stage i is held by pipeline rank i modulo the pipeline size.

        Raises:
            ValueError: the layout has another number of layers, or, without a layout, they do not divide.
        """
        layout, stages = self.pipeline_model_parallel_layout, self.num_stages
        if layout is None:
            if num_layers % stages:
                raise ValueError(
                    f"model.num_layers = {num_layers} must be a multiple of pipeline stages = {stages}, or "
                    "parallel.pipeline_model_parallel_layout says which stage holds how many"
                )
            return (num_layers // stages,) * stages
        counts = tuple(stage.count("t") for stage in pipeline_stages(layout))
        if sum(counts) != num_layers:
            raise ValueError(
                f"parallel.pipeline_model_parallel_layout = {layout!r} has {sum(counts)} layers t, but "
                f"model.num_layers = {num_layers}"
            )
        return counts


def initialize(parallel: ParallelConfig, seed: int = 0, timeout_s: float = 1800.0) -> None:
    """Join the processes that `torchrun` started, or be the only one; then build Megatron's groups and seed.

    May be called again with another layout over the same processes.

    Args:
        parallel: the layout.
        seed: of initial weights and dropout; pipeline stages get different ones.
        timeout_s: how long a collective may wait for the other processes.

    Raises:
        ValueError: the number of processes does not suit the layout, or the environment does not suit tensor
            parallelism.
        RuntimeError: another Megatron-Core than this project is written for, or psutil is missing.
    """
    _check_packages()
    cpu.install()
    from megatron.core import parallel_state, tensor_parallel  # takes seconds: not at import

    if parallel.tensor_model_parallel_size > 1 and has_gpu():
        _keep_launch_order()
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


def _keep_launch_order() -> None:
    """Tensor-parallel transfers overlap with products only if the device starts kernels in the order of their launch.

    Hopper and earlier need one hardware queue for that; CUDA reads the variable once, when it starts.

    Raises:
        ValueError: it says otherwise, or it is missing and CUDA is running already.
    """
    if not torch.cuda.is_initialized():
        os.environ.setdefault(_CONNECTIONS, "1")
    found = os.environ.get(_CONNECTIONS)
    if found != "1" and torch.cuda.get_device_capability()[0] < 10:
        raise ValueError(
            f"{_CONNECTIONS} is {found}: tensor parallelism before Blackwell needs 1, set before the process starts "
            f"(`export {_CONNECTIONS}=1`)"
        )


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
