"""From the rate of the tokens to the rate of the mel frames."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from megatron_aqaa.vocoder.cosyvoice.frame_mask import FrameMask
from megatron_aqaa.vocoder.cosyvoice.masked_layers import convolve, group_norm

NUM_CONVOLUTIONS = 4


class FrameTable(NamedTuple):
    """Where each frame lies among the tokens: between two of them.

    Attributes:
        left: [B or 1, F] int64.
        right: [B or 1, F] int64.
        share: [B or 1, F] of the right one.
    """

    left: Tensor
    right: Tensor
    share: Tensor


class LengthRegulator(nn.Module):
    """Linear interpolation, then four convolutions with group norm and Mish, then a linear layer.

    As FunAudioLLM/CosyVoice: `flow/length_regulator.py`, but at the exact frame ratio: a frame takes from the tokens
    at its own time. The released code stretches the tokens to the last frame of the batch, which shifts them by up to
    half a frame, and by more in a padded batch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(NUM_CONVOLUTIONS):
            layers += [nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(channels, channels, 1))

    def forward(self, tokens: Tensor, table: FrameTable, mask: FrameMask) -> Tensor:
        """`tokens [B, S, M]` → `[B, M, F]`; `mask` is over frames."""
        x = mask.keep(_interpolate(tokens, table).transpose(1, 2))
        layers = list(self.model)
        for index in range(0, 3 * NUM_CONVOLUTIONS, 3):
            convolution, norm, activation = layers[index : index + 3]
            x = activation(group_norm(norm, convolve(convolution, x, mask), mask))
        return mask.keep(layers[-1](x))


def frame_table(tokens: FrameMask, frames: FrameMask, frames_per_token: float, device: torch.device) -> FrameTable:
    """Where frames lie: frame f at token `(f + ½) / frames_per_token − ½`, and never beyond its chunk's last token."""
    place = (torch.arange(frames.size, device=device, dtype=torch.float64) + 0.5) / frames_per_token - 0.5
    last = _last_tokens(tokens, frames, device)
    place = torch.minimum(place.clamp(min=0), last)
    left = place.floor()
    right = torch.minimum(left + 1, last)
    return FrameTable(left.long(), right.long(), (place - left).float())


def _last_tokens(tokens: FrameMask, frames: FrameMask, device: torch.device) -> Tensor:
    """[B or 1, F] float64: the last token that each frame may take from."""
    assert len(tokens.boundaries) == len(frames.boundaries), "tokens and frames are cut into the same chunks"
    ends = torch.tensor([*tokens.boundaries, tokens.size], device=device)
    chunk = torch.bucketize(
        torch.arange(frames.size, device=device), torch.tensor(frames.boundaries, device=device).long(), right=True
    )
    stop = ends[chunk][None]
    return ((stop if tokens.lengths is None else torch.minimum(stop, tokens.lengths[:, None])) - 1).double()


def _interpolate(tokens: Tensor, table: FrameTable) -> Tensor:
    """[B, S, M] → [B, F, M]."""

    def take(index: Tensor) -> Tensor:
        return tokens.gather(1, index.expand(len(tokens), -1)[..., None].expand(-1, -1, tokens.shape[-1]))

    return torch.lerp(take(table.left), take(table.right), table.share[..., None].to(tokens.dtype))
