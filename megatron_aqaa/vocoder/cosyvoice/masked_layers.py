"""Convolutions and group norms that see what a `FrameMask` lets them see; layers hold the weights, these apply them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megatron_aqaa.vocoder.cosyvoice.frame_mask import FrameMask


def convolve(layer: nn.Module, x: Tensor, mask: FrameMask) -> Tensor:
    """A centred convolution, `[B, C, F]` → `[B, C', F]`: taps in the padding or in a later chunk read zeros."""
    assert isinstance(layer, nn.Conv1d)
    margin = layer.kernel_size[0] // 2
    x = mask.keep(x)
    if not mask.boundaries or not margin:
        return layer(x)
    spread, kept = _apart(mask, margin, x.device)
    return layer(_columns(x, spread))[..., kept]


def upsample(layer: nn.Module, x: Tensor, mask: FrameMask) -> Tensor:
    """A transposed convolution of stride 2, kernel 4 and padding 1, `[B, C, F]` → `[B, C', 2 F]`; as `convolve`."""
    assert isinstance(layer, nn.ConvTranspose1d)
    x = mask.keep(x)
    if not mask.boundaries:
        return layer(x)
    spread, kept = _apart(mask, 1, x.device)
    return layer(_columns(x, spread))[..., torch.stack((2 * kept, 2 * kept + 1), dim=-1).flatten()]


def group_norm(layer: nn.Module, x: Tensor, mask: FrameMask) -> Tensor:
    """Group norm of `[B, C, F]`; a frame is normalised by the frames it sees.

    A plain group norm takes its mean over the padding too, so that a recording would sound different in another batch,
    and over the future, so that nothing could be spoken before all is known.
    """
    assert isinstance(layer, nn.GroupNorm)
    if mask.is_plain:
        return layer(x)
    groups = mask.keep(x).float().unflatten(1, (layer.num_groups, -1))  # [B, G, C / G, F]
    sums, squares = groups.sum(dim=2), groups.square().sum(dim=2)
    if mask.boundaries:
        last = mask.ends(x.device) - 1
        sums, squares = (part.cumsum(dim=-1)[..., last] for part in (sums, squares))
    else:
        sums, squares = (part.sum(dim=-1, keepdim=True) for part in (sums, squares))
    count = (mask.counts(x.device) * groups.shape[2])[:, None]
    mean = sums / count
    deviation = ((squares / count - mean.square()).clamp(min=0) + layer.eps).sqrt()
    normalised = ((groups - mean[:, :, None]) / deviation[:, :, None]).flatten(1, 2)
    return (normalised * layer.weight[:, None] + layer.bias[:, None]).to(x.dtype)


def _apart(mask: FrameMask, margin: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Columns with `margin` zeros after each chunk, and before the next one what came before it.

    Returns:
        Columns of the spread-out frames, −1 for a zero; and the places among them of the F frames.
    """
    columns: list[int] = []
    kept: list[int] = []
    start = 0
    for end in (*mask.boundaries, mask.size):
        if start:
            columns += [-1] * margin + [max(-1, column) for column in range(start - margin, start)]
        kept += range(len(columns), len(columns) + end - start)
        columns += range(start, end)
        start = end
    return torch.tensor(columns, device=device), torch.tensor(kept, device=device)


def _columns(x: Tensor, columns: Tensor) -> Tensor:
    return x[..., columns].masked_fill(columns < 0, 0.0)
