"""TensorBoard for ears and eyes: samples and spectrograms of validations, beside their numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.audio.mel import MelConfig
from megatron_aqaa.vocoder.griffin_lim import griffin_lim
from megatron_aqaa.vocoder.losses import magnitude

LOWEST, HIGHEST = -11.5, 2.0
"""Log-mel values that are drawn darkest and brightest: the floor of 1e-5, and loud speech."""

WINDOW_S = 0.032
"""Of spectrograms, 31 Hz a line; as long as three periods of a low voice."""

NUM_SHOWN = 3
"""Recordings of a validation that are shown."""


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
        """Let `waveform [N]` be heard; its `log_mel [F, M]` and its spectrogram be seen."""
        self.writer.add_audio(name, waveform[None].float().clamp(-1, 1), step, sample_rate_hz)
        self._picture(step, f"{name} mel", log_mel)
        num_samples = round(WINDOW_S * sample_rate_hz)
        self._picture(step, f"{name} spectrogram", magnitude(waveform[None], num_samples, num_samples // 4)[0].log())

    def mel(self, step: int, name: str, log_mel: Tensor, config: MelConfig) -> None:
        """Let a `log_mel [F, M]` be seen and, by Griffin-Lim, be heard."""
        self.speech(step, name, griffin_lim(log_mel, config), config.sample_rate_hz, log_mel)

    def _picture(self, step: int, name: str, level: Tensor) -> None:
        self.writer.add_image(name, picture(level), step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


def open_board(wanted: bool, output: Path) -> SoundBoard | None:
    """Under `<output>/tensorboard`, if it is wanted and this is the first process."""
    return SoundBoard(output / "tensorboard") if wanted and platform.Replicas.join().is_first else None


def picture(log_mel: Tensor) -> Tensor:
    """`[F, M]` → `[3, M, F]` in 0 … 1: time to the right, pitch upwards, from black over red and yellow to white."""
    level = ((log_mel.float().T.flip(0) - LOWEST) / (HIGHEST - LOWEST)).clamp(0, 1)
    return torch.stack([(3 * level - shift).clamp(0, 1) for shift in range(3)])
