"""RMSNorm that knows about sequence parallelism."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_aqaa.platform import device


class RMSNorm(torch.nn.Module):
    """`x / sqrt(mean(x²) + eps) · weight`, computed in fp32 (fp64 for fp64 input).

    Megatron's local norm refuses sequence parallelism, where each rank sees part of the sequence and the weight's
    gradient must be summed over the tensor-parallel ranks: the attribute asks Megatron for that.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device()))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] to [..., H], same dtype."""
        if hidden.device.type == "cuda":
            return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        return _RMSNorm.apply(hidden, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """PyTorch composes its CPU norm of a dozen passes, recorded one by one; this backward needs two thirds of them.

    [2048, 256] bf16, one core, forward and backward: 2.8 ms → 1.5 ms (fp32: 2.3 → 1.0); nine calls a step.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        x = hidden.to(wide)
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, inverse)
        return (x * inverse).mul_(weight).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, inverse = ctx.saved_tensors
        width = weight.shape[0]
        normed = (hidden * inverse).reshape(-1, width)
        gradient = grad_out.to(normed.dtype).reshape(-1, width)
        product = gradient * normed
        w = weight.to(normed.dtype)
        projection = torch.mv(product, w).div_(-width)[:, None]
        grad = (gradient * w).addcmul_(normed, projection).mul_(inverse.reshape(-1, 1))
        return grad.to(hidden.dtype).reshape(hidden.shape), product.sum(0).to(weight.dtype), None
