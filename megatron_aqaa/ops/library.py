"""Loads the compiled operators and says what to do when they are missing."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch  # noqa: F401  (first: the extension modules resolve their symbols in torch's libraries)

REMEDY = "run `make venv`, or in your own environment `pip install --no-build-isolation --no-deps -e .`"

# On a GPU an id that no table holds gives a row of NaN; this checks ids first, at the price of a synchronization.
CHECK_IDS = os.environ.get("MEGATRON_AQAA_CHECK_IDS") == "1"


def load_extension(name: str) -> ModuleType:
    """Imports `megatron_aqaa.<name>`, one of the modules built from `csrc/`.

    Raises:
        ImportError: it was not built for this Python, or not against a torch that this one is compatible with.
    """
    try:
        return importlib.import_module(f"megatron_aqaa.{name}")
    except ImportError as error:
        raise ImportError(f"the compiled module megatron_aqaa.{name} cannot be loaded ({error}): {REMEDY}") from error


def built_with_cuda() -> bool:
    """Whether the operators' CUDA kernels were compiled; where they were not, CUDA tensors take the eager forms."""
    return bool(load_extension("_C").built_with_cuda)
