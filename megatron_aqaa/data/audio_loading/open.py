"""Which loader: DALI's where there is a GPU and DALI, torch's elsewhere."""

from __future__ import annotations

import importlib.util
from typing import Literal

from megatron_aqaa import platform
from megatron_aqaa.data.audio_loader import AudioLoader, AudioLoaderConfig
from megatron_aqaa.data.torch_loader import TorchLoader


def has_dali() -> bool:
    """Whether the extra `[dali]` is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("nvidia", "nvidia.dali"))


def open_loader(config: AudioLoaderConfig, backend: Literal["auto", "torch", "dali"] = "auto") -> AudioLoader:
    """A loader of recordings.

    Args:
        config: The settings.
        backend: "dali" runs on this process's GPU if it has one, else on the CPU. "auto" is "dali" where there are a
            GPU and DALI, or where DALI is to resample; else "torch", which is the faster of the two on a CPU.

    Raises:
        ImportError: DALI is wanted and missing; names the extra.
        ValueError: As `AudioLoader`.
    """
    on_gpu = platform.device().type == "cuda"
    if backend == "auto":
        has_dali = (
            importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
        )
        backend = "dali" if (on_gpu and has_dali) or config.resampler == "dali" else "torch"
    if backend == "torch":
        return TorchLoader(config)
    from megatron_aqaa.data.dali_loader import DaliLoader  # needs the extra [dali]

    return DaliLoader(config, "gpu" if on_gpu else "cpu")
