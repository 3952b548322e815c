"""Semantic codes: a phone recogniser at 25 Hz with a quantizer inside, after CosyVoice's supervised tokenizer.

The quantizer is finite scalar quantization with six values of four levels, 4096 codes. Besides the phones, the
codes must explain the mel spectrum and the pitch: a vocoder that sees only tokens has to find the tune in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from megatron_aqaa.tokenizer.features import FILTER_BANK
from megatron_aqaa.tokenizer.layers import Convolution, Encoder, EncoderConfig, FeatureNorm, valid_frames

FRAMES_PER_CODE = 4  # 40 ms
PITCH_PER_CODE = 2  # pitch frames of 20 ms


@dataclass(frozen=True)
class SemanticConfig:
    """Size of the semantic encoder.

    Attributes:
        encoder: width, heads and kernel of all layers.
        num_layers: layers before the quantizer.
        num_layers_after: layers after it, in the recogniser only.
        num_values: values of a code.
        num_levels: levels of each value.
    """

    encoder: EncoderConfig = EncoderConfig()
    num_layers: int = 3
    num_layers_after: int = 1
    num_values: int = 6
    num_levels: int = 4


class FiniteScalarQuantizer(nn.Module):
    """Projects to a few values, bounds each and rounds it to one of a few levels (Mentzer et al., arXiv 2309.15505).

    Code `c` written in base `num_levels`, least significant digit first, holds the levels.
    """

    powers: torch.Tensor

    def __init__(self, width: int, num_values: int, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.project_in = nn.Linear(width, num_values)
        self.project_out = nn.Linear(num_values, width)
        self.register_buffer("powers", num_levels ** torch.arange(num_values), persistent=False)

    def __len__(self) -> int:
        return self.num_levels ** len(self.powers)

    def levels(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] → [..., values] integers 0 … levels − 1 as floats; the gradient passes the rounding straight."""
        top = self.num_levels - 1
        bounded = (top + 1e-3) * torch.sigmoid(self.project_in(hidden).float()) - 5e-4
        return bounded + (bounded.round() - bounded).detach()

    def codes(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] → [...] int64."""
        return (self.levels(hidden).round().long().clamp(0, self.num_levels - 1) * self.powers).sum(-1)

    def embed_levels(self, levels: torch.Tensor) -> torch.Tensor:
        """[..., values] → [..., D]; levels are centred and scaled to −1 … 1 first."""
        return self.project_out(2 * levels / (self.num_levels - 1) - 1)

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """[...] codes → [..., D], what the layers after the quantizer saw in training."""
        return self.embed_levels((codes[..., None] // self.powers % self.num_levels).float())


class SemanticPrediction(NamedTuple):
    """What the quantized states say.

    Attributes:
        phone_logits: [B, F, P] at 100 Hz.
        mel: [B, F, M] normalised log-mel energies.
        pitch: [B, F / 2] octaves over 150 Hz.
    """

    phone_logits: torch.Tensor
    mel: torch.Tensor
    pitch: torch.Tensor


class SemanticEncoder(nn.Module):
    """Filter banks → codes of 40 ms, and from the codes phones, mel and pitch for training."""

    def __init__(self, config: SemanticConfig, phones: Sequence[str]) -> None:
        super().__init__()
        width = config.encoder.width
        self.config, self.phones = config, tuple(phones)
        self.feature_norm = FeatureNorm(FILTER_BANK.num_mels)
        self.first = Convolution(FILTER_BANK.num_mels, width, kernel_size=5, stride=2)
        self.second = Convolution(width, width, kernel_size=3, stride=2)
        self.encoder = Encoder(config.encoder, config.num_layers)
        self.early_phone_head = nn.Linear(width, FRAMES_PER_CODE * len(phones))
        self.quantizer = FiniteScalarQuantizer(width, config.num_values, config.num_levels)
        self.recogniser = Encoder(config.encoder, config.num_layers_after)
        self.norm = nn.LayerNorm(width)
        self.phone_head = nn.Linear(width, FRAMES_PER_CODE * len(phones))
        # mel and pitch are read from a code and its two neighbours: they must be in the codes, not worked out
        # from the whole utterance
        self.neighbours = Convolution(width, width, kernel_size=3)
        self.mel_head = nn.Linear(width, FRAMES_PER_CODE * FILTER_BANK.num_mels)
        self.pitch_head = nn.Linear(width, PITCH_PER_CODE)

    def hidden(self, fbank: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """States before the quantizer: [B, F, M] log-mel energies, [B] valid frames → [B, F / 4, D]."""
        normal = self.feature_norm(fbank, valid_frames(lengths, fbank.shape[1]))
        half = functional.gelu(self.first(normal))
        quarter = functional.gelu(self.second(half * valid_frames(lengths // 2, half.shape[1])[..., None]))
        return self.encoder(quarter, valid_frames(lengths // FRAMES_PER_CODE, quarter.shape[1]))

    def early_phone_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Phones from the states before the quantizer, [B, F / 4, D] → [B, F, P]: for training only."""
        return self.early_phone_head(hidden).view(len(hidden), -1, len(self.phones))

    def codes(self, fbank: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, F, M] log-mel energies, [B] valid frames → [B, F / 4] int64 codes; ignore those of padded frames."""
        return self.quantizer.codes(self.hidden(fbank, lengths))

    def forward(self, fbank: torch.Tensor, lengths: torch.Tensor) -> SemanticPrediction:
        """Through the quantizer, with straight gradients: [B, F, M], [B] → predictions."""
        return self.quantize_and_predict(self.hidden(fbank, lengths), lengths)

    def quantize_and_predict(self, hidden: torch.Tensor, lengths: torch.Tensor) -> SemanticPrediction:
        """States before the quantizer [B, F / 4, D] → predictions."""
        return self.predict(self.quantizer.embed_levels(self.quantizer.levels(hidden)), lengths)

    def predict(self, embedded: torch.Tensor, lengths: torch.Tensor) -> SemanticPrediction:
        """Predictions from embedded codes [B, F / 4, D] of `lengths` [B] valid frames."""
        valid = valid_frames(lengths // FRAMES_PER_CODE, embedded.shape[1])
        phones = self.phone_head(self.norm(self.recogniser(embedded, valid)))
        local = functional.gelu(self.neighbours(embedded * valid[..., None]))
        batch = len(embedded)
        return SemanticPrediction(
            phones.view(batch, -1, len(self.phones)),
            self.mel_head(local).view(batch, -1, FILTER_BANK.num_mels),
            self.pitch_head(local).view(batch, -1),
        )
