"""The loaders that keep the contract, for tests that hold for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from megatron_aqaa.data.audio_loader import AudioBatch, AudioLoader, AudioLoaderConfig
from megatron_aqaa.data.audio_loading.open import has_dali
from megatron_aqaa.data.torch_loader import TorchLoader

Open = Callable[[AudioLoaderConfig], AudioLoader]
needs_dali = pytest.mark.skipif(not has_dali(), reason="needs NVIDIA DALI: pip install 'megatron-aqaa[dali]'")


def torch_loader(config: AudioLoaderConfig) -> AudioLoader:
    return TorchLoader(dataclasses.replace(config, num_workers=0))


def torch_workers(config: AudioLoaderConfig) -> AudioLoader:
    return TorchLoader(dataclasses.replace(config, num_workers=2))


def dali_loader(config: AudioLoaderConfig) -> AudioLoader:
    from megatron_aqaa.data.dali_loader import DaliLoader

    return DaliLoader(config)


LOADERS = [torch_loader, torch_workers, pytest.param(dali_loader, marks=needs_dali)]


def assert_same(one: AudioBatch, other: AudioBatch) -> None:
    """To the bit."""
    assert one.ids == other.ids
    torch.testing.assert_close(one.lengths, other.lengths, rtol=0, atol=0)
    torch.testing.assert_close(one.features, other.features, rtol=0, atol=0)
