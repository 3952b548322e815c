"""What this node has, as a look at it before the first step sees it."""

from __future__ import annotations

import torch

from megatron_aqaa.platform.device import device


def num_gpus() -> int:
    """GPUs that this process sees."""
    return torch.cuda.device_count()


def free_gpu_memory_bytes() -> int:
    """Of this process's GPU; other processes may be using the rest."""
    return torch.cuda.mem_get_info(device())[0]


def finish_gpu_work() -> None:
    """Wait until the GPU, if there is one, has done what it was given: for clocks on the host."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
