"""The flow's field: a 1-D U-Net over mel frames (FunAudioLLM/CosyVoice: `flow/decoder.py`, `ConditionalDecoder`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from megatron_aqaa.vocoder.cosyvoice.frame_mask import FrameMask
from megatron_aqaa.vocoder.cosyvoice.masked_layers import convolve, upsample
from megatron_aqaa.vocoder.cosyvoice.unet_layers import (
    NUM_GROUPS,
    ConvBlock,
    Downsample,
    ResnetBlock,
    TimeEmbedding,
    TransformerBlock,
    Upsample,
)


@dataclass(frozen=True)
class EstimatorConfig:
    """Sizes; the defaults are the released ones.

    Attributes:
        channels: of each level; the second one on has half the frames of the one before it.
        num_transformer_blocks: after each ResNet block.
        num_mid_blocks: at the lowest level.
        num_heads: of the attention.
        head_size: channels of a head.
        dropout: of attention output and feed-forward.
    """

    channels: tuple[int, ...] = (256, 256)
    num_transformer_blocks: int = 4
    num_mid_blocks: int = 12
    num_heads: int = 8
    head_size: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.channels or any(channels % NUM_GROUPS for channels in self.channels):
            raise ValueError(f"channels {self.channels}: one level or more, each a multiple of {NUM_GROUPS}")

    @property
    def frame_multiple(self) -> int:
        """Chunks must begin at multiples of so many frames."""
        return 1 << (len(self.channels) - 1)


class Condition(NamedTuple):
    """What the field is told beside the noisy mel; all zeros where it is told nothing.

    Attributes:
        tokens: [B, M, F], the encoded tokens.
        speaker: [B, M]; None where the network knows no speakers.
        prompt: [B, M, F] mel of a voice prompt, zeros after it; None where the network takes none.
    """

    tokens: Tensor
    speaker: Tensor | None
    prompt: Tensor | None

    def times(self, keep: Tensor) -> Condition:
        """All fields times `keep [B]`."""
        return self._mapped(lambda part: part * keep.view(-1, *[1] * (part.dim() - 1)).to(part.dtype))

    def beside_nothing(self) -> Condition:
        """This batch, then as many that are told nothing."""
        return self._mapped(lambda part: torch.cat((part, torch.zeros_like(part))))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Condition:
        speaker, prompt = (None if part is None else change(part) for part in self[1:])
        return Condition(change(self.tokens), speaker, prompt)


class Estimator(nn.Module):
    """Noisy mel, time and condition → velocity.

    Args:
        in_channels: of mel and condition together.
        num_mels: of the velocity.
        config: sizes.
    """

    def __init__(self, in_channels: int, num_mels: int, config: EstimatorConfig) -> None:
        super().__init__()
        time_size = 4 * config.channels[0]
        self.time_mlp = TimeEmbedding(in_channels, time_size)
        last = len(config.channels) - 1
        self.down_blocks, self.mid_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(config.channels):
            previous = config.channels[level - 1] if level else in_channels
            down = Downsample(channels) if level < last else nn.Conv1d(channels, channels, 3, padding=1)
            self.down_blocks.append(nn.ModuleList([*_stage(previous, channels, time_size, config), down]))
        for _ in range(config.num_mid_blocks):
            lowest = config.channels[-1]
            self.mid_blocks.append(nn.ModuleList(_stage(lowest, lowest, time_size, config)))
        # the released network gives each level on the way up the width of the level above it, and the first one its own
        outputs = (*config.channels[-2::-1], config.channels[0])
        for level, (skipped, channels) in enumerate(zip(config.channels[::-1], outputs, strict=True)):
            up = Upsample(channels) if level < last else nn.Conv1d(channels, channels, 3, padding=1)
            self.up_blocks.append(nn.ModuleList([*_stage(2 * skipped, channels, time_size, config), up]))
        self.final_block = ConvBlock(config.channels[0], config.channels[0])
        self.final_proj = nn.Conv1d(config.channels[0], num_mels, 1)

    def forward(self, mel: Tensor, time: Tensor, condition: Condition, mask: FrameMask) -> Tensor:
        """`mel [B, M, F]`, `time [B]`, condition → [B, M, F]."""
        step = self.time_mlp(time)
        x = torch.cat((mel, *_channels(condition, mel.shape[-1])), dim=1)
        masks, skips = [mask], []
        for stage in self.down_blocks:
            resnet, transformers, resample = _parts(stage)
            x = _through(resnet, transformers, x, masks[-1], step)
            skips.append(x)
            x, below = _down(resample, x, masks[-1])
            masks.append(below)
        masks.pop()  # the last level is not halved
        for stage in self.mid_blocks:
            resnet, transformers = _parts(stage)
            x = _through(resnet, transformers, x, masks[-1], step)
        for stage in self.up_blocks:
            resnet, transformers, resample = _parts(stage)
            mask, skip = masks.pop(), skips.pop()
            x = torch.cat((x[..., : mask.size], skip), dim=1)
            x = _up(resample, _through(resnet, transformers, x, mask, step), mask)
        return mask.keep(convolve(self.final_proj, self.final_block(x, mask), mask))


def _stage(in_channels: int, channels: int, time_size: int, config: EstimatorConfig) -> tuple[nn.Module, nn.Module]:
    blocks = (
        TransformerBlock(channels, config.num_heads, config.head_size, config.dropout)
        for _ in range(config.num_transformer_blocks)
    )
    return ResnetBlock(in_channels, channels, time_size), nn.ModuleList(blocks)


def _parts(stage: nn.Module) -> Iterator[nn.Module]:
    assert isinstance(stage, nn.ModuleList)
    return iter(stage)


def _channels(condition: Condition, size: int) -> list[Tensor]:
    """Parts of the input [B, M, F], in the released order."""
    speaker = condition.speaker if condition.speaker is None else condition.speaker[..., None].expand(-1, -1, size)
    return [part for part in (condition.tokens, speaker, condition.prompt) if part is not None]


def _through(resnet: nn.Module, transformers: nn.Module, x: Tensor, mask: FrameMask, step: Tensor) -> Tensor:
    """A ResNet block, then transformer blocks over frames [B, F, C]."""
    x = resnet(x, mask, step).transpose(1, 2).contiguous()
    seen = mask.attention(x.device)
    for block in _parts(transformers):
        x = block(x, seen)
    return x.transpose(1, 2)


def _down(resample: nn.Module, x: Tensor, mask: FrameMask) -> tuple[Tensor, FrameMask]:
    if isinstance(resample, Downsample):
        return resample.conv(mask.keep(x)), mask.halved()
    return convolve(resample, x, mask), mask


def _up(resample: nn.Module, x: Tensor, mask: FrameMask) -> Tensor:
    return upsample(resample.conv, x, mask) if isinstance(resample, Upsample) else convolve(resample, x, mask)
