"""Audio tokens → mel by flow matching, at full size: encoder, length regulator and field under the released names.

FunAudioLLM/CosyVoice: `flow/flow.py`, `MaskedDiffWithXvec` (arXiv 2407.05407 §2.3). Told of tokens alone, or also of a
speaker's vector and the mel of a voice prompt, as the released checkpoints are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_aqaa.audio.mel import MelConfig
from megatron_aqaa.vocoder import flow
from megatron_aqaa.vocoder.cosyvoice.conformer import ConformerConfig, ConformerEncoder
from megatron_aqaa.vocoder.cosyvoice.estimator import Condition, Estimator, EstimatorConfig
from megatron_aqaa.vocoder.cosyvoice.frame_mask import FrameMask
from megatron_aqaa.vocoder.cosyvoice.length_regulator import LengthRegulator, frame_table
from megatron_aqaa.vocoder.cosyvoice.token_ids import (
    POSITIONS_PER_GROUP,
    PairEmbedding,
    TokenForm,
    check_tokens,
    token_rate_hz,
)

WIDE_MEL = MelConfig(sample_rate_hz=22050, n_fft=1024, win_length=1024, hop_length=256)
"""The published mel: 86.13 frames/s, 80 bands up to 8 kHz."""


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of the flow model; the defaults are the published ones.

    Attributes:
        vocab_size: linguistic and semantic codes together.
        linguistic_size: the linguistic ones of them; matters to columns.
        token_form: one flat stream of tokens, or two columns; see `token_ids`.
        token_rate_hz: of the positions; 0 for that of the form (flat 41.67, columns 25).
        mel: what it speaks.
        speaker_size: width of a speaker's vector (192 in the released checkpoints); 0 for tokens alone.
        voice_prompt: takes the mel of a voice prompt.
        encoder: sizes of the encoder.
        estimator: sizes of the field's network.
        condition_dropout: share of the training examples that are told nothing.
        chunk_tokens: chunk lengths, in positions, of the training with a chunk mask: whole groups.
        chunked_ratio: share of the training batches with a chunk mask.
    """

    vocab_size: int = 5120
    linguistic_size: int = 1024
    token_form: TokenForm = "flat"
    token_rate_hz: float = 0.0
    mel: MelConfig = WIDE_MEL
    speaker_size: int = 0
    voice_prompt: bool = True
    encoder: ConformerConfig = field(default_factory=ConformerConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    condition_dropout: float = 0.2
    chunk_tokens: tuple[int, ...] = (25, 40, 80)
    chunked_ratio: float = 0.5

    def __post_init__(self) -> None:
        group = POSITIONS_PER_GROUP[self.token_form]
        if not self.chunk_tokens or any(tokens < 1 or tokens % group for tokens in self.chunk_tokens):
            raise ValueError(f"chunk_tokens {self.chunk_tokens}: {self.token_form} needs whole groups of {group}")
        for name in ("condition_dropout", "chunked_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be a share, 0 … 1")

    @property
    def frames_per_token(self) -> float:
        """Exact ratio of the rates of frames and positions; 2.0671875 as published."""
        return self.mel.frame_rate_hz / (self.token_rate_hz or token_rate_hz(self.token_form))

    @property
    def in_channels(self) -> int:
        """Of the field: noisy mel, tokens, and what else it is told."""
        return self.mel.num_mels * (2 + bool(self.speaker_size) + self.voice_prompt)

    def num_frames(self, num_tokens: int) -> int:
        """Whole frames of so many tokens, as many as the lowest level of the field can halve.

        The odd frame (12 ms) at the end is left out, so that a recording ends where its last chunk does.
        """
        multiple = self.estimator.frame_multiple
        return math.floor(num_tokens * self.frames_per_token + 1e-6) // multiple * multiple  # rates are rounded


class TokenBatch(NamedTuple):
    """Padded token streams.

    Attributes:
        tokens: [B, S] int64 flat ids, or [B, S, 2] pairs of codes; the padding may hold anything in range.
        lengths: [B] int64; None where all are S long.
    """

    tokens: Tensor
    lengths: Tensor | None = None


class FlowModel(nn.Module):
    """See the module's docstring."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        num_mels = config.mel.num_mels
        self.input_embedding = _embedding(config)
        if config.speaker_size:
            self.spk_embed_affine_layer = nn.Linear(config.speaker_size, num_mels)
        self.encoder = ConformerEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.output_size, num_mels)
        self.decoder = FlowDecoder(config)
        self.length_regulator = LengthRegulator(num_mels)

    def masks(self, batch: TokenBatch, edges: tuple[int, ...] = ()) -> tuple[FrameMask, FrameMask]:
        """Masks over S tokens and over their `config.num_frames(S)` frames.

        Args:
            batch: S tokens.
            edges: first token of every chunk but the first; see `even_chunks`.
        """
        count, size = self.config.num_frames, batch.tokens.shape[1]
        frames = FrameMask(count(size), _mapped(count, batch.lengths), tuple(map(count, edges)))
        return FrameMask(size, batch.lengths, edges), frames

    def condition(
        self,
        batch: TokenBatch,
        masks: tuple[FrameMask, FrameMask],
        speaker: Tensor | None = None,
        prompt: Tensor | None = None,
    ) -> Condition:
        """Encode.

        Args:
            batch: S tokens.
            masks: over tokens and over F frames.
            speaker: [B, speaker_size]; None for nobody in particular.
            prompt: [B, F, M] mel of the prompt, zeros after it; None for no prompt.

        Raises:
            ValueError: a token id out of range, or a speaker or prompt that the network does not take.
        """
        self._check(batch.tokens, speaker, prompt)
        tokens, frames = masks
        embedded = tokens.keep(self.input_embedding(batch.tokens).transpose(1, 2)).transpose(1, 2)
        hidden = self.encoder_proj(self.encoder(embedded, tokens))
        table = frame_table(tokens, frames, self.config.frames_per_token, hidden.device)
        encoded = self.length_regulator(hidden, table, frames)
        empty = encoded.new_zeros(encoded.shape)
        return Condition(
            encoded,
            self._speaker(speaker, empty[..., 0]) if self.config.speaker_size else None,
            (empty if prompt is None else prompt.transpose(1, 2)) if self.config.voice_prompt else None,
        )

    @torch.inference_mode()
    def sample(
        self,
        batch: TokenBatch,
        noise: Tensor,
        steps: int = 10,
        guidance: float = flow.GUIDANCE,
        edges: tuple[int, ...] = (),
        speaker: Tensor | None = None,
        prompt: Tensor | None = None,
    ) -> Tensor:
        """Draw mel spectrograms of whole streams.

        Args:
            batch: S tokens, all streams of this length.
            noise: [B, F, M] standard normal, F = `config.num_frames(S)`.
            steps: Euler steps.
            guidance: weight of classifier-free guidance; 0 halves the work.
            edges: as in `masks`; frames look ahead to the end of their chunk only, without edges everywhere.
            speaker: as in `condition`.
            prompt: as in `condition`.

        Returns:
            [B, F, M] natural log-mel.
        """
        masks = self.masks(batch, edges)
        condition = self.condition(batch, masks, speaker, prompt)
        return flow.euler(self.decoder.field(condition, masks[1], guidance), noise, steps)

    def _speaker(self, speaker: Tensor | None, nobody: Tensor) -> Tensor:
        if speaker is None:
            return nobody
        return self.spk_embed_affine_layer(functional.normalize(speaker, dim=1))

    def _check(self, tokens: Tensor, speaker: Tensor | None, prompt: Tensor | None) -> None:
        if tokens.device.type == "cpu" and tokens.numel():  # on a GPU the embedding's own assertion must do
            config = self.config
            check_tokens(tokens, config.token_form, config.vocab_size, config.linguistic_size)
        if speaker is not None and not self.config.speaker_size:
            raise ValueError("this flow model knows no speakers (speaker_size is 0); leave the speaker's vector out")
        if prompt is not None and not self.config.voice_prompt:
            raise ValueError("this flow model takes no voice prompt (voice_prompt is false); leave the prompt out")


def even_chunks(size: int, chunk_tokens: int) -> tuple[int, ...]:
    """Edges of chunks of `chunk_tokens` in a stream of `size` tokens; none for 0."""
    return tuple(range(chunk_tokens, size, chunk_tokens)) if chunk_tokens else ()


def _mapped(count: Callable[[int], int], lengths: Tensor | None) -> Tensor | None:
    return None if lengths is None else torch.tensor([count(n) for n in lengths.tolist()], device=lengths.device)


def _embedding(config: FlowConfig) -> nn.Module:
    size = config.encoder.input_size
    if config.token_form == "flat":
        return nn.Embedding(config.vocab_size, size)
    return PairEmbedding(config.linguistic_size, config.vocab_size - config.linguistic_size, size)


class FlowDecoder(nn.Module):
    """The field with its guidance."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.estimator = Estimator(config.in_channels, config.mel.num_mels, config.estimator)

    def velocity(self, y: Tensor, time: Tensor, condition: Condition, mask: FrameMask) -> Tensor:
        """Of noisy mel `y [B, F, M]` at `time [B]`: [B, F, M]."""
        return self.estimator(y.transpose(1, 2), time, condition, mask).transpose(1, 2)

    def field(self, condition: Condition, mask: FrameMask, guidance: float) -> flow.Field:
        """What the flow follows; guidance 0 is the conditional model."""

        def conditional(y: Tensor, time: Tensor) -> Tensor:
            return self.velocity(y, time, condition, mask)

        doubled = condition.beside_nothing()
        lengths = None if mask.lengths is None else mask.lengths.repeat(2)
        doubled_mask = FrameMask(mask.size, lengths, mask.boundaries)

        def with_guidance(y: Tensor, time: Tensor) -> Tensor:
            velocity = self.velocity(torch.cat((y, y)), torch.cat((time, time)), doubled, doubled_mask)
            told, untold = velocity.chunk(2)
            return flow.guided(told, untold, guidance)

        return with_guidance if guidance else conditional
