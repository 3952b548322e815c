"""Builds the two extension modules; everything else about the package is in pyproject.toml.

`megatron_aqaa._C` holds the tensor operators on torch's stable ABI: its CPU half always, its CUDA half when the CUDA
toolkit is there and torch has CUDA. `megatron_aqaa._index` builds indices on the host with pybind11.

Environment:
    MEGATRON_AQAA_CUDA: 1 builds the CUDA half, 0 leaves it out. Default: 1 if torch has CUDA and a toolkit is found.
        A GPU need not be present: 1 also works beside CPU torch, and the result still loads there.
    MEGATRON_AQAA_CUDA_ARCHS: architectures, default "80 90a 100a" (and PTX of 80 for anything newer).
    CUDA_HOME: root of the CUDA toolkit, default /usr/local/cuda.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

TORCH = Path(torch.__file__).parent
CUDA_HOME = Path(os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda")
CUDA_ARCHS = os.environ.get("MEGATRON_AQAA_CUDA_ARCHS", "80 90a 100a").split()
# -ffp-contract=off: the same sums on every CPU, with or without fused multiply-add.
CXX_FLAGS = ["-O3", "-g0", "-std=c++20", "-Wall", "-ffp-contract=off", "-fvisibility=hidden"]
# The CUDA half finds the stream function of libtorch_cuda through libtorch, so that dependency must stay although
# nothing refers to it by name. (CPU torch has a libtorch as well, without the CUDA library behind it.)
LINK_FLAGS = ["-Wl,--no-as-needed", "-ltorch"]


def cuda_wanted() -> bool:
    """The switch, then what torch and the toolkit say. Never whether a GPU is visible: CI compiles without one."""
    toolkit = (CUDA_HOME / "bin" / "nvcc").exists()
    switch = os.environ.get("MEGATRON_AQAA_CUDA", "")
    if switch == "1" and not toolkit:
        raise SystemExit(f"MEGATRON_AQAA_CUDA=1, but there is no {CUDA_HOME}/bin/nvcc: set CUDA_HOME to the toolkit")
    if switch:
        return switch == "1"
    if torch.version.cuda and not toolkit:
        print(f"no CUDA toolkit in {CUDA_HOME} (CUDA_HOME names another): CUDA tensors will use the eager operators")
    return bool(torch.version.cuda) and toolkit


class BuildExtension(build_ext):
    """Compiles the `.cu` files with nvcc and hands the objects to the ordinary link step."""

    def build_extension(self, ext: Extension) -> None:  # noqa: D102
        kernels = [source for source in ext.sources if source.endswith(".cu")]
        ext.sources = [source for source in ext.sources if source not in kernels]
        ext.extra_objects = [*ext.extra_objects, *(self.compile_kernels(source) for source in kernels)]
        super().build_extension(ext)

    def compile_kernels(self, source: str) -> str:
        """Object file of one `.cu` file."""
        target = Path(self.build_temp) / f"{Path(source).stem}.cu.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHS]
        targets.append(f"-gencode=arch=compute_{CUDA_ARCHS[0]},code=compute_{CUDA_ARCHS[0]}")
        flags = ["-O3", "-std=c++17", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden", *targets]
        command = [str(CUDA_HOME / "bin" / "nvcc"), *flags, "-c", source, "-o", str(target)]
        print(" ".join(command))
        subprocess.check_call(command)
        return str(target)


def operators() -> Extension:
    """The tensor operators."""
    macros: list[tuple[str, str | None]] = [
        ("TORCH_TARGET_VERSION", "0x020b000000000000"),  # torch 2.11
        ("TORCH_STABLE_ONLY", None),  # an unstable header is a compile error
        ("Py_LIMITED_API", "0x030b0000"),
    ]
    sources = [str(path) for path in sorted(Path("csrc/ops").glob("*.cpp")) if not path.stem.endswith("_cuda")]
    libraries, library_dirs = ["torch_cpu", "c10"], [str(TORCH / "lib")]
    if cuda_wanted():
        macros.append(("MEGATRON_AQAA_CUDA", None))
        sources += [str(path) for pattern in ("*_cuda.cpp", "*.cu") for path in sorted(Path("csrc/ops").glob(pattern))]
        # The static runtime leaves no dependency on a CUDA library, so the module loads beside CPU torch.
        libraries += ["cudart_static", "rt", "dl", "pthread"]
        library_dirs.append(str(CUDA_HOME / "lib64"))
    return Extension(
        "megatron_aqaa._C",
        sources,
        include_dirs=[str(TORCH / "include")],
        define_macros=macros,
        libraries=libraries,
        library_dirs=library_dirs,
        extra_compile_args=CXX_FLAGS,
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
        depends=[str(path) for path in sorted(Path("csrc/ops").glob("*.*h"))],
    )


def index() -> Extension:
    """The host-side index builders."""
    return Extension(
        "megatron_aqaa._index",
        ["csrc/index/module.cpp"],
        include_dirs=[pybind11.get_include()],
        extra_compile_args=CXX_FLAGS,
        depends=[str(path) for path in Path("csrc/index").glob("*.h")],
    )


setup(
    ext_modules=[operators(), index()], cmdclass={"build_ext": BuildExtension}, options={"build_ext": {"parallel": 2}}
)
