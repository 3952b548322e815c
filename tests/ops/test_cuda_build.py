"""The CUDA half beside any torch: its host side compiles, and what is built with it loads and computes on the CPU."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parent.parent.parent
CUDA_HOME = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))

# Loads the module that was built in place of the installed one.
USE = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("megatron_aqaa._C", sys.argv[1])
built = sys.modules["megatron_aqaa._C"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(built)
from megatron_aqaa import ops
weight = torch.arange(8.0).reshape(4, 2).requires_grad_()
out = ops.dual_codebook_embedding(torch.tensor([[3, 0, 3]]), weight)
out.sum().backward()
print(ops.library.built_with_cuda(), out.tolist(), weight.grad[:, 0].tolist())
"""


def operators(monkeypatch: pytest.MonkeyPatch, cuda_home: Path) -> setuptools.Extension:
    """What setup.py would build as `megatron_aqaa._C` with the CUDA half."""
    given: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    monkeypatch.setenv("MEGATRON_AQAA_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(cuda_home))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return next(extension for extension in given["ext_modules"] if extension.name == "megatron_aqaa._C")


@pytest.mark.slow
def test_the_host_side_compiles_without_a_toolkit(tmp_path, monkeypatch):
    nvcc = tmp_path / "bin" / "nvcc"  # setup.py asks for it, the host side does not
    nvcc.parent.mkdir()
    nvcc.touch()
    extension = operators(monkeypatch, tmp_path)
    sources = [source for source in extension.sources if source.endswith("_cuda.cpp")]
    assert len(sources) == 3
    flags = [*extension.extra_compile_args, *(f"-I{folder}" for folder in extension.include_dirs)]
    flags += [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in extension.define_macros]
    compiler = os.environ.get("CXX", "c++").split()
    done = subprocess.run([*compiler, "-fsyntax-only", "-Werror", *flags, *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not (CUDA_HOME / "bin" / "nvcc").exists(),
    reason=f"needs the CUDA toolkit; there is no {CUDA_HOME}/bin/nvcc (CUDA_HOME names another)",
)
def test_a_build_with_cuda_loads_and_computes_on_the_cpu(tmp_path):
    environment = os.environ | {"MEGATRON_AQAA_CUDA": "1", "MEGATRON_AQAA_CUDA_ARCHS": "80", "PYTHONPATH": str(ROOT)}
    build = [sys.executable, "setup.py", "build_ext", f"--build-temp={tmp_path / 'temp'}", f"--build-lib={tmp_path}"]
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module = tmp_path / "megatron_aqaa" / "_C.abi3.so"
    done = subprocess.run([sys.executable, "-c", USE, module], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "True [[[6.0, 7.0]], [[0.0, 1.0]], [[6.0, 7.0]]] [1.0, 0.0, 0.0, 2.0]"
