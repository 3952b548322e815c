"""Processes that train one small network together, each with the whole of it: plain data parallelism.

The language model's processes are Megatron's (`parallel`); the tokenizers and the vocoder need no more than this.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed

from megatron_aqaa.platform.device import has_gpu, select_device


@dataclass(frozen=True)
class Replicas:
    """This process among its like.

    Attributes:
        rank: 0 … size − 1; the first one writes files and shows progress.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Replicas:
        """Meet the processes that `torchrun` or SLURM started beside this one; alone where it was started alone."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            return cls()
        if not distributed.is_initialized():
            select_device()
            distributed.init_process_group("nccl" if has_gpu() else "gloo")
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0

    @torch.no_grad()
    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the sum over all processes in place of each tensor; one transfer for each dtype.

        Args:
            tensors: of one device, the same shapes in the same order on every process.
        """
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            distributed.all_reduce(flat)
            for tensor, part in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(part.view_as(tensor))
