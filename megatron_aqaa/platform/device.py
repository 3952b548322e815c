"""The device that this process computes on."""

from __future__ import annotations

import os
import resource
import sys

import torch


def has_gpu() -> bool:
    """True where PyTorch can use a CUDA device."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """This process's GPU (by `LOCAL_RANK`), or the CPU where there is none."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if has_gpu() else torch.device("cpu")


def select_device() -> torch.device:
    """Make `device()` the current one and return it."""
    chosen = device()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def local_processes(at_most: int = 2) -> int:
    """Processes that share a small model on this machine: one per GPU, or one per core where there is none."""
    return min(at_most, torch.cuda.device_count() if has_gpu() else at_most)


def device_name() -> str:
    """What the maker calls this process's GPU; "cpu" where there is none."""
    return torch.cuda.get_device_name(device()) if has_gpu() else "cpu"


def peak_memory_bytes() -> int:
    """Most memory that this process ever held: allocated on its GPU, or resident where there is none."""
    if has_gpu():
        return torch.cuda.max_memory_allocated(device())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
