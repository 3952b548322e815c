"""What the flow model is trained on (by `training.speech_models.fit`): masked mean squared error of the velocity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_aqaa.vocoder import flow
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig, FlowModel, TokenBatch, even_chunks
from megatron_aqaa.vocoder.cosyvoice.frame_mask import FrameMask

PROMPT_RATIO = 0.3
"""Half of the examples see up to so much of their own beginning as a voice prompt (as FunAudioLLM/CosyVoice)."""


class FlowBatch(NamedTuple):
    """Recordings with their tokens.

    Attributes:
        tokens: padded streams.
        mel: [B, F, M] natural log-mel, F = `FlowConfig.num_frames(S)`; anything in the padding.
        speaker: [B, speaker_size], or None.
    """

    tokens: TokenBatch
    mel: Tensor
    speaker: Tensor | None = None


def flow_losses(model: FlowModel, batch: FlowBatch) -> dict[str, Tensor]:
    """The loss of a batch under a chunk mask drawn for it, at random times, the condition dropped now and then."""
    mel = batch.mel
    edges = even_chunks(batch.tokens.tokens.shape[1], draw_chunk(model.config))
    masks = model.masks(batch.tokens, edges)
    prompt = _prompt(mel, masks[1]) if model.config.voice_prompt else None
    condition = model.condition(batch.tokens, masks, batch.speaker, prompt)
    condition = condition.times(torch.rand(len(mel), device=mel.device) >= model.config.condition_dropout)
    time = flow.cosine_schedule(torch.rand(len(mel), device=mel.device))
    noise = torch.randn_like(mel)
    velocity = model.decoder.velocity(flow.path_point(noise, mel, time), time, condition, masks[1])
    error = (velocity.float() - flow.path_velocity(noise, mel)).square()
    return {"loss": masked_mean(error, masks[1])}


def draw_chunk(config: FlowConfig) -> int:
    """Chunk length in tokens for a batch: 0 (no chunks), or one of `chunk_tokens`; from torch's CPU generator."""
    if float(torch.rand(())) >= config.chunked_ratio:
        return 0
    return config.chunk_tokens[int(torch.randint(len(config.chunk_tokens), ()))]


def masked_mean(values: Tensor, mask: FrameMask) -> Tensor:
    """Mean of `values [B, F, M]` over valid frames."""
    if mask.valid is None:
        return values.mean()
    valid = mask.valid.transpose(1, 2)
    return values.masked_fill(~valid, 0.0).sum() / (valid.sum() * values.shape[-1])


def _prompt(mel: Tensor, mask: FrameMask) -> Tensor:
    """`mel` up to a random frame, zeros after it."""
    batch, size, _ = mel.shape
    lengths = torch.full((batch,), size, device=mel.device) if mask.lengths is None else mask.lengths
    has_prompt = torch.rand(batch, device=mel.device) >= 0.5
    stop = (torch.rand(batch, device=mel.device) * PROMPT_RATIO * lengths * has_prompt).long()
    return mel.masked_fill((torch.arange(size, device=mel.device) >= stop[:, None])[..., None], 0.0)
