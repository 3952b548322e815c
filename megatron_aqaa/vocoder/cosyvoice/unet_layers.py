"""Layers of the flow's U-Net, with the names of shivammehta25/Matcha-TTS: `models/components/`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_aqaa.vocoder.cosyvoice.frame_mask import FrameMask
from megatron_aqaa.vocoder.cosyvoice.masked_layers import convolve, group_norm

NUM_GROUPS = 8


class ConvBlock(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(in_channels, channels, 3, padding=1), nn.GroupNorm(NUM_GROUPS, channels), nn.Mish()
        )

    def forward(self, x: Tensor, mask: FrameMask) -> Tensor:
        """[B, C, F] → [B, C', F]."""
        convolution, norm, activation = self.block
        return activation(group_norm(norm, convolve(convolution, x, mask), mask))


class ResnetBlock(nn.Module):
    """Two `ConvBlock`s with the time between them, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, time_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_size, channels))
        self.block1, self.block2 = ConvBlock(in_channels, channels), ConvBlock(channels, channels)
        self.res_conv = nn.Conv1d(in_channels, channels, 1)

    def forward(self, x: Tensor, mask: FrameMask, time: Tensor) -> Tensor:
        """`x [B, C, F]`, `time [B, T]` → [B, C', F]."""
        hidden = self.block1(x, mask) + self.mlp(time)[..., None]
        return mask.keep(self.block2(hidden, mask) + convolve(self.res_conv, x, mask))


class Downsample(nn.Module):
    """Every second frame; begins chunks at even frames, so that no tap reaches into a later chunk."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, stride=2, padding=1)


class Upsample(nn.Module):
    """Two frames for one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward; there are no positions but those that convolutions leave."""

    def __init__(self, channels: int, num_heads: int, head_size: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn1 = Attention(channels, num_heads, head_size, dropout)
        self.ff = FeedForward(channels, dropout)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """`x [B, F, C]`, who sees whom → [B, F, C]."""
        x = x + self.attn1(self.norm1(x), seen)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Heads that together may be wider than the block."""

    def __init__(self, channels: int, num_heads: int, head_size: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, inner = num_heads, num_heads * head_size
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, inner, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(inner, channels), nn.Dropout(dropout))

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """See `TransformerBlock.forward`."""
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(attend(query, key, value, seen).transpose(1, 2).flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
    """Softmax attention.

    Args:
        query: [B, heads, F, d]; key and value are alike.
        key: see `query`.
        value: see `query`.
        seen: bool, who sees whom, broadcast to [B, heads, F, F]; None: all.

    Returns:
        [B, heads, F, d].
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or query.requires_grad:
        return functional.scaled_dot_product_attention(query, key, value, seen)
    # in bf16 torch's fused kernel for CPUs is slower than its parts: a guided step of the field at full size takes .86
    # s of one core with it, .78 s with these (5 s of speech, EPYC with AVX-512 BF16, 2026-11)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(dim=-1) @ value


class FeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(Expand(channels), nn.Dropout(dropout), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] → [..., C]."""
        return self.net(x)


class Expand(nn.Module):
    """Linear layer and GELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] → [..., 4 C]."""
        return functional.gelu(self.proj(x))


class TimeEmbedding(nn.Module):
    """Sines and cosines of the flow's time through two layers."""

    def __init__(self, in_channels: int, size: int) -> None:
        super().__init__()
        self.num_features = in_channels
        self.linear_1, self.linear_2 = nn.Linear(in_channels, size), nn.Linear(size, size)

    def forward(self, time: Tensor) -> Tensor:
        """[B] in 0 … 1 → [B, T]."""
        features = time_features(time, self.num_features).to(self.linear_1.weight.dtype)
        return self.linear_2(functional.silu(self.linear_1(features)))


def time_features(time: Tensor, count: int) -> Tensor:
    """Sines, then cosines, of `1000 · time` at wavelengths 2π … 2π · 10⁴: [B, count]."""
    half = count // 2
    rates = torch.exp(torch.arange(half, device=time.device) * (-math.log(10000.0) / (half - 1)))
    angles = 1000 * time[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
