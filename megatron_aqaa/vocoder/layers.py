"""The two blocks that both vocoder networks are made of; activations are `[B, F, H]`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a two-layer net per frame, added to the input.

    After gemelo-ai/vocos: `modules.py`. With a condition the norm's scale and shift come from it (AdaLN), starting from
    the unconditioned block.

    Args:
        size: channels H.
        inner_size: width of the per-frame net.
        kernel_size: odd; a block sees `kernel_size // 2` frames to each side.
        condition_size: channels C of the condition; 0 for none.
        scale: start value of the learned gain of the added branch.
    """

    def __init__(
        self, size: int, inner_size: int, kernel_size: int = 7, condition_size: int = 0, scale: float = 0.3
    ) -> None:
        super().__init__()
        # A [B, F, H] tensor is, read as an image of width 1, channels-last already: the 2-D kernel takes it as it
        # is. Forward and backward at [16, 40, 256] bf16: 1.3 ms against 2.5 ms of Conv1d with its two transposes.
        self.depthwise = nn.Conv2d(size, size, (kernel_size, 1), padding=(kernel_size // 2, 0), groups=size)
        self.norm = nn.LayerNorm(size, elementwise_affine=not condition_size)
        self.modulation = nn.Linear(condition_size, 2 * size) if condition_size else None
        self.expand = nn.Linear(size, inner_size)
        self.contract = nn.Linear(inner_size, size)
        self.gain = nn.Parameter(torch.full((size,), scale))
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Frames `x [B, F, H]`, condition `[B, C]` → `[B, F, H]`."""
        y = self.norm(self.depthwise(x.transpose(1, 2)[..., None])[..., 0].transpose(1, 2))
        if self.modulation is not None:
            assert condition is not None, "a block with AdaLN needs its condition"
            scale, shift = self.modulation(condition)[:, None].chunk(2, dim=-1)
            y = y * (1 + scale) + shift
        return x + self.gain * self.contract(functional.gelu(self.expand(y)))


class AttentionBlock(nn.Module):
    """Pre-norm self-attention over all frames; without positions, which the convolutions around it supply."""

    def __init__(self, size: int, num_heads: int = 4) -> None:
        super().__init__()
        if size % num_heads:
            raise ValueError(f"hidden size {size} is not a multiple of the {num_heads} attention heads")
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames `x [B, F, H]` → `[B, F, H]`."""
        heads = self.query_key_value(self.norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, F, H / heads]
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return x + self.output(mixed.transpose(1, 2).flatten(2))
