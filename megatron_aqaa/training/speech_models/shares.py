"""Shares of a step: batches with noise of their own, dealt out to processes or done one after the other by one.

What both loops (`fit`, `adversarial_fit`) need so that several processes do to the last bit what one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_aqaa import platform


def join_for_shares(num_shares: int) -> platform.Replicas:
    """Meet the other processes.

    Raises:
        ValueError: the shares of a step cannot be dealt out evenly.
    """
    replicas = platform.Replicas.join()
    if num_shares % replicas.size:
        raise ValueError(f"num_shares = {num_shares} must be a multiple of the {replicas.size} processes")
    return replicas


def seed_share(seed: int, step: int, share: int) -> None:
    """Make noise and dropout depend on seed, step and share alone."""
    torch.manual_seed(seed * 1_000_003 + step + share * 1_000_000_007)


def gradients(parameters: Sequence[torch.Tensor], num_shares: int) -> list[torch.Tensor]:
    """Of all parameters, in order; zeros where a share had no use for one that another share may have used."""
    for parameter in parameters if num_shares > 1 else ():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def on_device(batch: Any, device: torch.device | None = None) -> Any:
    """A batch of tensors in (named) tuples, on `device`; None: this process's."""
    device = device or platform.device()
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple):
        parts = [on_device(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch
