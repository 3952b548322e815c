"""A Whisper-style encoder at 25 Hz: two strided convolutions, sinusoidal positions, transformer layers.

So the released semantic tokenizer hears (FunAudioLLM/CosyVoice-300M-25Hz: the first half of Whisper's encoder with a
quantizer behind it); Radford et al., arXiv 2212.04356, section 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_aqaa.tokenizer.layers import valid_frames


@dataclass(frozen=True)
class WhisperConfig:
    """Size of the encoder.

    Attributes:
        width: channels; Whisper large has 1280.
        num_heads: attention heads; Whisper large has 20.
        num_layers: layers before the quantizer.
    """

    width: int = 1280
    num_heads: int = 20
    num_layers: int = 6

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width % 2:
            raise ValueError(f"width = {self.width} must be even and a multiple of num_heads = {self.num_heads}")


class WhisperEncoder(nn.Module):
    """Log-mel [B, F, M] at 100 Hz, zero at padding → [B, ceil(F / 4), D]."""

    def __init__(self, num_mels: int, config: WhisperConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(num_mels, config.width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.layers = TransformerLayers(config, config.num_layers)

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """See the class; `lengths` [B] are valid frames, of which multiples of four are whole codes."""
        half = functional.gelu(self.conv1(mel.transpose(1, 2)))
        half = half * valid_frames(-(-lengths // 2), half.shape[2])[:, None]
        hidden = functional.gelu(self.conv2(half)).transpose(1, 2)
        hidden = hidden + sinusoids(hidden.shape[1], hidden.shape[2], hidden.device)
        return self.layers(hidden, valid_frames(-(-lengths // 4), hidden.shape[1]))


class TransformerLayers(nn.Module):
    """Pre-norm layers of attention over the whole piece and a position-wise network, four times as wide."""

    def __init__(self, config: WhisperConfig, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config.width, config.num_heads) for _ in range(num_layers))

    def forward(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """[B, F, D] and [B, F] bool (True inside the piece) → [B, F, D]."""
        for layer in self.layers:
            hidden = layer(hidden, valid)
        return hidden


class TransformerLayer(nn.Module):
    """One of `TransformerLayers`."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias of the keys moves all scores of a query alike
        self.output = nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """See `TransformerLayers.forward`."""
        normal = self.attention_norm(hidden)
        query, key, value = (
            part(normal).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None])
        hidden = hidden + self.output(mixed.transpose(1, 2).flatten(2))
        return hidden + self.network(self.network_norm(hidden))


def sinusoids(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Positions 0 … length − 1 as [F, D]: sines, then cosines, of wavelengths 2π … 20000π (openai/whisper)."""
    rates = torch.exp(torch.arange(width // 2, device=device) * (-math.log(10000.0) / max(1, width // 2 - 1)))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), -1)
