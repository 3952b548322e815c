"""What Transformer Engine adds on a GPU: its layers, 8-bit products, transfers hidden behind products.

Validated by configuration only: there is no Transformer Engine where this was written, and nothing here has been
executed with it. `start_tensor_overlap` follows Megatron-LM's own start-up (NVIDIA/Megatron-LM: `initialize.py`).
"""

from __future__ import annotations

import importlib.util
from typing import Any

from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.platform.device import has_gpu

FP8_MULTIPLE = 16
"""Both sides of an 8-bit product are multiples of this (cuBLAS)."""

_FP8_RECIPES = ("tensorwise", "delayed")


def has_transformer_engine() -> bool:
    """True where layers are built from Transformer Engine's modules: on a GPU, with the extra `[gpu]` installed."""
    return has_gpu() and importlib.util.find_spec("transformer_engine") is not None


def require_transformer_engine(setting: str, remedy: str) -> None:
    """Raises ValueError where there is none.

    Args:
        setting: that needs it.
        remedy: override that does without.
    """
    if has_transformer_engine():
        return
    missing = "Transformer Engine (`pip install megatron-aqaa[gpu]`)" if has_gpu() else "a GPU"
    raise ValueError(f"{setting} needs {missing}, which is not here; to run without it: {remedy}")


def check_fp8(recipe: str, params_dtype: str) -> None:
    """Raises ValueError for recipes that are not offered, with the reason, and for weights that are not bf16."""
    if recipe not in _FP8_RECIPES:
        raise ValueError(
            f"model.fp8 = {recipe}: known are {', '.join(_FP8_RECIPES)}. Scales for blocks of 128 do not fit: at eight "
            "tensor-parallel ranks the SwiGLU slice of the 130B model has 3904 = 30.5 × 128 columns"
        )
    if params_dtype != "bf16":
        raise ValueError(f"model.fp8 needs model.params_dtype: bf16, found {params_dtype}")


def fp8_settings(recipe: str | None) -> dict[str, Any]:
    """Fields of Megatron's configuration; weights, gradients and optimizer keep their dtypes.

    Forward products are E4M3 and those with gradients E5M2; delayed scales come from the largest of 1024 steps, as in
    Transformer Engine's own recipe.
    """
    if recipe is None:
        return {}
    history = {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"} if recipe == "delayed" else {}
    return {"fp8": "hybrid", "fp8_recipe": recipe, **history}


def start_tensor_overlap(parallel: ParallelConfig, hidden_size: int, num_tokens: int, *, fp8: bool) -> None:
    """Allocate the buffers of `tp_comm_overlap`: once, after `platform.initialize`, before the model is built.

    Args:
        parallel: the layout.
        hidden_size: H.
        num_tokens: positions of a micro-batch, all context-parallel parts together.
        fp8: whether products are in 8-bit floats.
    """
    from transformer_engine.pytorch import module

    modes = module.base.UserBufferQuantizationMode
    module.base.initialize_ub(
        shape=[num_tokens // parallel.context_parallel_size, hidden_size],
        tp_size=parallel.tensor_model_parallel_size,
        quantization_modes=[modes.FP8 if fp8 else modes.NONE],
        ub_cfgs={},
        bootstrap_backend="nccl",
    )
