"""The contract with Megatron's DDP hook for a backward that adds into `main_grad` itself."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulates_in_main_grad(weight: Tensor) -> bool:
    """Whether backward adds its rows straight into `weight.main_grad`, the fp32 buffer of Megatron's DDP.

    Megatron's hook skips a parameter's ordinary gradient once `grad_added_to_main_grad` is set, so this must be the
    weight's only ordinary gradient. With a tied head on the same stage it is not: Megatron marks such a weight
    `zero_out_wgrad`, and backward returns an ordinary gradient there. So it does for fp64 weights beside an fp32
    buffer, a pair that no kernel is built for: the hook rounds as it adds.
    """
    main_grad = getattr(weight, "main_grad", None)
    return (
        main_grad is not None
        and main_grad.dtype in (weight.dtype, torch.promote_types(weight.dtype, torch.float32))
        and hasattr(weight, "grad_added_to_main_grad")
        and not getattr(weight, "zero_out_wgrad", False)
    )


def dummy_gradient(weight: Tensor) -> Tensor:
    """Stands for a gradient that is already in `main_grad`.

    Megatron's hook wants a gradient (None trips its assert under `overlap_grad_reduce`) and drops it. It must be fresh:
    autograd keeps a fresh one but clones a cached or expanded one, 0.19 s against 0.0005 s at [74752, 3072].
    """
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
