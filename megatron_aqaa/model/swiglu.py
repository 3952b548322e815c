"""SwiGLU for the CPU, with a backward that writes where it should."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(hidden: Tensor) -> Tensor:
    """`silu(gate) · up`, where gate and up are the halves of the last dimension: [..., 2 · F] to [..., F].

    Megatron adds an offset of zero to `up` and lets autograd glue the halves' gradients together: two passes over
    memory that this form does without.
    """
    return _SwiGLU.apply(hidden)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        gate, up = hidden.chunk(2, -1)
        activated = F.silu(gate)
        ctx.save_for_backward(hidden, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        hidden, activated = ctx.saved_tensors
        gate, up = hidden.chunk(2, -1)
        grad = torch.empty_like(hidden)
        grad_gate, grad_up = grad.chunk(2, -1)
        torch.mul(grad_out, activated, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_out * up, gate, grad_input=grad_gate)
        return grad
