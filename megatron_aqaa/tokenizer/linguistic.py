"""Linguistic codes: a phone recogniser's hidden states at 16.67 Hz, quantized by k-means.

The released tokenizer is a streaming Paraformer encoder with a `[1024, 512]` centroid file (Step-Audio, section 3.1);
this is the same construction in miniature: 80-mel filter banks, low-frame-rate stacking 7/6, an encoder trained with
frame labels, the nearest centroid by Euclidean distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from megatron_aqaa.tokenizer.features import FILTER_BANK
from megatron_aqaa.tokenizer.layers import Encoder, EncoderConfig, FeatureNorm, valid_frames

FRAMES_PER_CODE = 6  # 60 ms: low-frame-rate step n
STACKED_FRAMES = 7  # low-frame-rate window m


@dataclass(frozen=True)
class LinguisticConfig:
    """Size of the linguistic encoder."""

    encoder: EncoderConfig = EncoderConfig()
    num_layers: int = 4


class LinguisticEncoder(nn.Module):
    """Filter banks → hidden states of 60 ms, and phone logits of 10 ms for training."""

    def __init__(self, config: LinguisticConfig, phones: Sequence[str]) -> None:
        super().__init__()
        width = config.encoder.width
        self.config, self.phones = config, tuple(phones)
        self.feature_norm = FeatureNorm(FILTER_BANK.num_mels)
        self.input = nn.Linear(STACKED_FRAMES * FILTER_BANK.num_mels, width)
        self.encoder = Encoder(config.encoder, config.num_layers)
        self.norm = nn.LayerNorm(width)
        self.phone_head = nn.Linear(width, FRAMES_PER_CODE * len(phones))

    def forward(self, fbank: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Hidden states.

        Args:
            fbank: [B, F, M] log-mel energies, F a multiple of 6.
            lengths: [B] valid frames.

        Returns:
            [B, F / 6, D]
        """
        normal = self.feature_norm(fbank, valid_frames(lengths, fbank.shape[1]))
        stacked = stack_frames(normal)
        valid = valid_frames(lengths // FRAMES_PER_CODE, stacked.shape[1])
        return self.norm(self.encoder(self.input(stacked), valid))

    def phone_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, F / 6, D] → [B, F, P]: each hidden state names the phones of its six frames."""
        return self.phone_head(hidden).view(len(hidden), -1, len(self.phones))


def stack_frames(fbank: torch.Tensor) -> torch.Tensor:
    """Low-frame-rate stacking: [B, F, M] → [B, F / 6, 7 · M]; window t holds frames 6t − 3 … 6t + 3, zeros outside."""
    context = STACKED_FRAMES // 2
    padded = functional.pad(fbank, (0, 0, context, context))
    windows = padded.unfold(1, STACKED_FRAMES, FRAMES_PER_CODE)  # [B, F / 6, M, 7]
    return windows[:, : fbank.shape[1] // FRAMES_PER_CODE].transpose(2, 3).flatten(2)


def nearest_centroid(hidden: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Index of the nearest centroid by Euclidean distance: [..., D], [K, D] → [...] int64."""
    flat = hidden.flatten(0, -2).float()
    scores = flat @ centroids.T - 0.5 * centroids.square().sum(-1)  # the larger, the nearer
    return scores.argmax(-1).view(hidden.shape[:-1])
