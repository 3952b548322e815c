"""Encoder of the token stream: Conformer blocks without their convolution, relative positions.

Names and rules as released (FunAudioLLM/CosyVoice: `transformer/encoder.py`, `ConformerEncoder` with
`rel_pos_espnet`, `rel_selfattn`, no convolution, no second feed-forward; positions after arXiv 1901.02860 §3.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_aqaa.vocoder.cosyvoice.frame_mask import FrameMask


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes; the defaults are the released ones.

    Attributes:
        input_size: width of the token embedding.
        output_size: width of the blocks.
        attention_heads: of every block.
        linear_units: width inside the feed-forward.
        num_blocks: blocks.
        dropout: of input, positions, attention and both branches.
    """

    input_size: int = 512
    output_size: int = 512
    attention_heads: int = 8
    linear_units: int = 2048
    num_blocks: int = 6
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.output_size % self.attention_heads or self.output_size % 2:
            raise ValueError(
                f"output_size = {self.output_size} must be even and a multiple of attention_heads = "
                f"{self.attention_heads}"
            )


class ConformerEncoder(nn.Module):
    """Embedded tokens [B, S, E] → hidden states [B, S, H]."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = InputLayer(config)
        self.encoders = nn.ModuleList(ConformerBlock(config) for _ in range(config.num_blocks))
        self.after_norm = nn.LayerNorm(config.output_size, eps=1e-5)

    def forward(self, embedded: Tensor, mask: FrameMask) -> Tensor:
        """Encode S tokens; `mask` is over tokens."""
        hidden = self.embed(embedded)
        positions = self.embed.dropout(relative_positions(hidden))
        seen = mask.attention(hidden.device)
        for block in self.encoders:
            hidden = block(hidden, positions, seen)
        return self.after_norm(hidden)


class InputLayer(nn.Module):
    """Linear layer and norm, scaled to stand beside positions."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.out = nn.Sequential(
            nn.Linear(config.input_size, config.output_size),
            nn.LayerNorm(config.output_size, eps=1e-5),
            nn.Dropout(config.dropout),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.scale = math.sqrt(config.output_size)

    def forward(self, embedded: Tensor) -> Tensor:
        """[B, S, E] → [B, S, H]."""
        return self.dropout(self.out(embedded) * self.scale)


class ConformerBlock(nn.Module):
    """Pre-norm attention, then feed-forward."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(config)
        self.feed_forward = FeedForward(config)
        self.norm_ff = nn.LayerNorm(config.output_size, eps=1e-12)
        self.norm_mha = nn.LayerNorm(config.output_size, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, positions: Tensor, seen: Tensor | None) -> Tensor:
        """`hidden [B, S, H]`, `positions [2 S − 1, H]`, who sees whom → [B, S, H]."""
        hidden = hidden + self.dropout(self.self_attn(self.norm_mha(hidden), positions, seen))
        return hidden + self.dropout(self.feed_forward(self.norm_ff(hidden)))


class FeedForward(nn.Module):
    """Two layers per token."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.output_size, config.linear_units)
        self.w_2 = nn.Linear(config.linear_units, config.output_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] → [..., H]."""
        return self.w_2(self.dropout(functional.silu(self.w_1(hidden))))


class RelativeAttention(nn.Module):
    """Self-attention whose scores know the distance: `((q + u) · k + (q + v) · p(distance)) / √d`."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        size, self.num_heads = config.output_size, config.attention_heads
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(size, size) for _ in range(3))
        self.linear_out = nn.Linear(size, size)
        self.linear_pos = nn.Linear(size, size, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(self.num_heads, size // self.num_heads))
        self.pos_bias_v = nn.Parameter(torch.empty(self.num_heads, size // self.num_heads))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)
        self.dropout = config.dropout

    def forward(self, hidden: Tensor, positions: Tensor, seen: Tensor | None) -> Tensor:
        """See `ConformerBlock.forward`."""
        query, key, value = (self._heads(layer(hidden)) for layer in (self.linear_q, self.linear_k, self.linear_v))
        distance = self.linear_pos(positions).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # [heads, 2 S − 1, d]
        by_distance = (query + self.pos_bias_v[:, None]) @ distance.transpose(-1, -2)
        bias = by_place(by_distance) * query.shape[-1] ** -0.5
        if seen is not None:
            bias = bias.masked_fill(~seen, float("-inf"))
        mixed = functional.scaled_dot_product_attention(
            query + self.pos_bias_u[:, None], key, value, bias, dropout_p=self.dropout if self.training else 0.0
        )
        return self.linear_out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def relative_positions(hidden: Tensor) -> Tensor:
    """Sines and cosines, in turn, of the distances S − 1 … −(S − 1) (query before key: negative): [2 S − 1, H]."""
    size, width = hidden.shape[-2:]
    distance = torch.arange(size - 1, -size, -1, device=hidden.device, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, width, 2, device=hidden.device) * (-math.log(10000.0) / width))
    angles = distance[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).to(hidden.dtype)


def by_place(by_distance: Tensor) -> Tensor:
    """[..., S, 2 S − 1] over distances as in `relative_positions` → [..., S, S] over keys.

    Query i finds key j at distance i − j, column S − 1 − i + j: each row begins one column before the row above, which
    a change of the row length does without an index.
    """
    size = by_distance.shape[-2]
    rows = functional.pad(by_distance, (1, 0)).flatten(-2)  # rows of 2 S …
    return rows[..., size:].unflatten(-1, (size, -1))[..., :size]  # … read as rows of 2 S − 1
