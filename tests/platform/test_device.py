"""What the platform says of this process's device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_aqaa.platform.device import device_name, peak_memory_bytes


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what there is without a GPU")
def test_without_a_gpu() -> None:
    assert device_name() == "cpu"
    before = peak_memory_bytes()
    larger = before + (1 << 27)  # earlier tests may have left a peak far above what this process holds
    np.ones(larger, np.uint8)
    assert larger <= peak_memory_bytes() < 2 * larger + (1 << 30)


@pytest.mark.gpu
def test_with_a_gpu() -> None:
    assert "NVIDIA" in device_name()
    before = peak_memory_bytes()
    torch.empty(before + (1 << 20), dtype=torch.uint8, device="cuda")
    assert peak_memory_bytes() >= before + (1 << 20)
