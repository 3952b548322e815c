"""TensorBoard for ears and eyes: samples and spectrograms of validations, beside their numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

LOWEST, HIGHEST = -11.5, 2.0
"""Log-mel values that are drawn darkest and brightest: the floor of 1e-5, and loud speech."""


class SoundBoard:
    """`tensorboard --logdir <directory>`.

    Args:
        directory: receives the event files.

    Raises:
        ValueError: the package is missing.
    """

    def __init__(self, directory: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ValueError(
                "tensorboard: true needs the package tensorboard: pip install 'megatron-aqaa[track]', or leave it out"
            )
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def speech(self, step: int, name: str, waveform: Tensor, sample_rate_hz: int, log_mel: Tensor) -> None:
        """Let `waveform [N]` be heard and its `log_mel [F, M]` be seen."""
        self.writer.add_audio(name, waveform[None].clamp(-1, 1), step, sample_rate_hz)
        self.picture(step, f"{name} mel", log_mel)

    def picture(self, step: int, name: str, log_mel: Tensor) -> None:
        """Show `log_mel [F, M]`."""
        self.writer.add_image(name, mel_picture(log_mel), step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


def mel_picture(log_mel: Tensor) -> Tensor:
    """`[F, M]` → `[3, M, F]` in 0 … 1: time to the right, pitch upwards, from black over red and yellow to white."""
    level = ((log_mel.float().T.flip(0) - LOWEST) / (HIGHEST - LOWEST)).clamp(0, 1)
    return torch.stack([(3 * level - shift).clamp(0, 1) for shift in range(3)])
