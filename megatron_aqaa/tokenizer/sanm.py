"""SANM: the streaming speech encoder of Paraformer, with the parameter names of its released checkpoints.

Self-attention with a memory block, a depthwise convolution over the values, runs in chunks (Gao et al., arXiv
2006.01713; modelscope/FunASR: `funasr/models/scama/encoder.py`, class `SANMEncoderChunkOpt`). A chunk of 4 frames is
encoded together with the 5 frames before it, and looks back at 4 frames of each of the 4 chunks before it: the oldest
that were encoded there. So a frame is encoded up to three times; the first time it is put out, the last time is what
later chunks see. Whole recordings are encoded by the same rule, all chunks at once: exactly what a stream gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class SanmConfig:
    """Size of the encoder and its chunks; the defaults are those of the released linguistic tokenizer.

    Attributes:
        input_size: 80 mels in stacks of seven frames.
        output_size: width.
        attention_heads: of every layer.
        linear_units: width inside the position-wise network.
        num_blocks: layers.
        kernel_size: taps of the memory block, odd.
        chunk_frames: new frames of a chunk, 240 ms.
        overlap_frames: frames before them that are encoded once more.
        look_back_chunks: chunks before it that a chunk attends to.
    """

    input_size: int = 560
    output_size: int = 512
    attention_heads: int = 4
    linear_units: int = 2048
    num_blocks: int = 50
    kernel_size: int = 11
    chunk_frames: int = 4
    overlap_frames: int = 5
    look_back_chunks: int = 4

    def __post_init__(self) -> None:
        if self.output_size % self.attention_heads:
            raise ValueError(
                f"output_size = {self.output_size} must be a multiple of attention_heads = {self.attention_heads}"
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size = {self.kernel_size} must be odd, so that the memory block is centred")
        if self.input_size % 2:
            raise ValueError(f"input_size = {self.input_size} must be even: half of the position code are sines")


class Past(NamedTuple):
    """What a layer remembers of the last chunks: their oldest `chunk_frames` frames each, [B, chunks, 4, D]."""

    key: Tensor
    value: Tensor


class SanmState(NamedTuple):
    """What a stream remembers.

    Attributes:
        position: frames seen so far.
        overlap: [B, 5, input_size] the last of them, zeros before the first.
        past: of every layer; none before the first chunk.
    """

    position: int
    overlap: Tensor
    past: tuple[Past, ...]


class SanmEncoder(nn.Module):
    """Stacked filter banks → hidden states of 60 ms."""

    def __init__(self, config: SanmConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders0 = nn.Sequential(SanmLayer(config, config.input_size))
        self.encoders = nn.Sequential(*(SanmLayer(config, config.output_size) for _ in range(config.num_blocks - 1)))
        self.after_norm = _norm(config.output_size)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Whole recordings.

        Args:
            frames: [B, F, input_size], normalised.
            lengths: [B] valid frames.

        Returns:
            [B, F, output_size]; a recording's frames do not depend on what it is batched with.
        """
        return self.stream(frames, self.start(len(frames), frames), lengths)[0]

    def start(self, batch: int, like: Tensor) -> SanmState:
        """State before the first frame, of the type and on the device of a tensor."""
        return SanmState(0, like.new_zeros(batch, self.config.overlap_frames, self.config.input_size), ())

    def stream(self, frames: Tensor, state: SanmState, lengths: Tensor | None = None) -> tuple[Tensor, SanmState]:
        """Go on with streams.

        Args:
            frames: [B, F, input_size]; F is a multiple of `chunk_frames` except in the last call of a stream.
            state: after the frames before.
            lengths: [B] valid frames, where they differ; the streams end here.

        Returns:
            [B, F, output_size], and the state after these frames.
        """
        batch, count, _ = frames.shape
        placed = frames * math.sqrt(self.config.output_size) + position_code(frames, state.position)
        windows, valid = self._windows(placed, state.overlap, lengths)
        hidden, past = windows, []
        for index, layer in enumerate((*self.encoders0, *self.encoders)):
            hidden, remembered = layer(hidden, valid, state.past[index] if state.past else None)
            past.append(remembered)
        hidden = self.after_norm(hidden)[:, :, self.config.overlap_frames :]
        overlap = torch.cat((state.overlap, placed), 1)[:, -self.config.overlap_frames :]
        return hidden.reshape(batch, -1, hidden.shape[-1])[:, :count], SanmState(
            state.position + count, overlap, tuple(past)
        )

    def _windows(self, placed: Tensor, overlap: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Chunks with what they overlap, [B, C, 9, D], and which frames are valid, [B, C, 9]."""
        batch, count, _ = placed.shape
        new, old = self.config.chunk_frames, self.config.overlap_frames
        behind = functional.pad(torch.cat((overlap, placed), 1), (0, 0, 0, -count % new))
        valid = torch.arange(behind.shape[1] - old, device=placed.device) < (
            torch.full((batch, 1), count, device=placed.device) if lengths is None else lengths[:, None]
        )
        behind[:, old:] = behind[:, old:] * valid[..., None]
        valid = functional.pad(valid, (old, 0), value=True)
        return behind.unfold(1, old + new, new).transpose(2, 3), valid.unfold(1, old + new, new)


class SanmLayer(nn.Module):
    """Attention with memory, then the position-wise network; residuals where input and output are equally wide."""

    def __init__(self, config: SanmConfig, input_size: int) -> None:
        super().__init__()
        self.residual = input_size == config.output_size
        self.norm1, self.norm2 = _norm(input_size), _norm(config.output_size)
        self.self_attn = MemoryAttention(config, input_size)
        self.feed_forward = FeedForward(config)

    def forward(self, hidden: Tensor, valid: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """[B, C, 9, D], which of them are valid, and what is remembered → [B, C, 9, D'], and what is then."""
        mixed, remembered = self.self_attn(self.norm1(hidden), valid, past)
        hidden = hidden + mixed if self.residual else mixed
        return hidden + self.feed_forward(self.norm2(hidden)), remembered


class FeedForward(nn.Module):
    """Position-wise network."""

    def __init__(self, config: SanmConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.output_size, config.linear_units)
        self.w_2 = nn.Linear(config.linear_units, config.output_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] → [..., D]."""
        return self.w_2(functional.relu(self.w_1(hidden)))


class MemoryAttention(nn.Module):
    """Attention of each chunk to itself and to the chunks before it, plus the memory block over its own values."""

    def __init__(self, config: SanmConfig, input_size: int) -> None:
        super().__init__()
        self.config = config
        width, taps = config.output_size, config.kernel_size
        self.linear_q_k_v = nn.Linear(input_size, 3 * width)
        self.linear_out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, taps, padding=taps // 2, groups=width, bias=False)

    def forward(self, hidden: Tensor, valid: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """See `SanmLayer.forward`."""
        query, key, value = self.linear_q_k_v(hidden).chunk(3, -1)
        keys, seen = self._with_past(key, past and past.key)
        values, _ = self._with_past(value, past and past.value)
        attended = self._attend(query, keys, values, torch.cat((seen.expand(*valid.shape[:2], -1), valid), -1))
        return self.linear_out(attended) + self._memory(value, valid), Past(
            self._remember(key, past and past.key), self._remember(value, past and past.value)
        )

    def _with_past(self, own: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Prepend to the keys or values of each chunk those of the chunks before it.

        Returns:
            [B, C, 4 · 4 + 9, D], and [1, C, 16] bool: which of the first 16 there were.
        """
        chunks, new = self.config.look_back_chunks, self.config.chunk_frames
        earlier = own[:, :-1, :new] if past is None else torch.cat((past, own[:, :-1, :new]), 1)
        missing = chunks + own.shape[1] - 1 - earlier.shape[1]
        padded = functional.pad(earlier, (0, 0, 0, 0, missing, 0)).unfold(1, chunks, 1)  # [B, C, 4, D, chunks]
        before = padded.permute(0, 1, 4, 2, 3).flatten(2, 3)
        seen = (torch.arange(chunks + own.shape[1] - 1, device=own.device) >= missing).unfold(0, chunks, 1)
        return torch.cat((before, own), 2), seen.repeat_interleave(new, -1)[None]

    def _remember(self, own: Tensor, past: Tensor | None) -> Tensor:
        oldest = own[:, :, : self.config.chunk_frames]
        return (oldest if past is None else torch.cat((past, oldest), 1))[:, -self.config.look_back_chunks :]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> Tensor:
        heads = self.config.attention_heads
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(2, 3) for part in (query, key, value))
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        scores = scores.masked_fill(~valid[:, :, None, None], float("-inf"))
        return (torch.softmax(scores, -1) @ value).transpose(2, 3).flatten(3)

    def _memory(self, value: Tensor, valid: Tensor) -> Tensor:
        """Convolution over the frames of each window, zeros outside, and the values themselves."""
        masked = (value * valid[..., None]).flatten(0, 1)
        memory = self.fsmn_block(masked.transpose(1, 2)).transpose(1, 2) + masked
        return memory.view_as(value)


def position_code(frames: Tensor, start: int) -> Tensor:
    """Sines, then cosines, of positions counted from 1, [F, D]; `start` frames came before."""
    half = frames.shape[-1] // 2
    rates = torch.exp(torch.arange(half, device=frames.device, dtype=frames.dtype) * (-math.log(10000.0) / (half - 1)))
    positions = torch.arange(1 + start, 1 + start + frames.shape[1], device=frames.device, dtype=frames.dtype)
    angles = positions[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), -1)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-12)
