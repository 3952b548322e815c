"""The CUDA kernels compile for every architecture and keep everything in registers; no GPU is needed for that."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent.parent / "csrc" / "ops"
NVCC = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"


@pytest.mark.slow
@pytest.mark.skipif(not NVCC.exists(), reason=f"needs the CUDA toolkit; there is no {NVCC} (CUDA_HOME names another)")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_100a"])
@pytest.mark.parametrize("source", sorted(CSRC.glob("*.cu")), ids=lambda path: path.stem)
def test_no_kernel_spills(source, architecture, tmp_path):
    command = [NVCC, "-cubin", "-O3", "-std=c++17", "-Xptxas=-v", f"-arch={architecture}"]
    done = subprocess.run([*command, "-o", tmp_path / "out.cubin", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", done.stderr)]
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", done.stderr)]
    assert len(registers) >= 8  # four element types, with packets and without
    assert spills == [0] * len(spills)
    assert max(registers) <= 64, "fewer than eight blocks of 128 threads would fit on a multiprocessor"
