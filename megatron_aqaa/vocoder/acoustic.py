"""Acoustic model: audio codes → mel, pitch and voicing.

A trunk of convolutions gives the mean mel spectrum, the pitch and the voicing by regression, and its channels tell a
flow what to draw: the regression is a prior that teaches the trunk, as the encoder's is in Matcha-TTS (arXiv 2309.03199
§2). A flow of what the mean leaves out was no better than the mean on many voices (word error .159 and .160, 3 seeds),
since little of that can be foreseen: docs/vocoder.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from megatron_aqaa.vocabulary import LINGUISTIC_PER_GROUP, SEMANTIC_PER_GROUP
from megatron_aqaa.vocoder import flow
from megatron_aqaa.vocoder.frames import FRAMES_PER_GROUP, VoiceFrames
from megatron_aqaa.vocoder.layers import AttentionBlock, ConvNeXtBlock


@dataclass(frozen=True)
class AcousticConfig:
    """Sizes of the acoustic model.

    Attributes:
        num_mels: bands of the mel spectrum.
        linguistic_size: entries of the linguistic codebook.
        semantic_size: entries of the semantic codebook.
        hidden_size: channels everywhere.
        num_condition_blocks: blocks from codes to mean mel; each sees 4 frames (80 ms) to both sides.
        num_flow_blocks: blocks of the flow's network.
        num_heads: heads of the attention that follows every fourth flow block, from the second on.
        condition_dropout: share of the training examples whose flow does not see the codes.
        form: what is trained: `both`, a flow and the regression as its prior; or one of them alone, to compare
            (`benchmarks/vocoder_forms.py`).
    """

    num_mels: int = 80
    linguistic_size: int = 1024
    semantic_size: int = 4096
    hidden_size: int = 192
    num_condition_blocks: int = 4
    num_flow_blocks: int = 5
    num_heads: int = 4
    condition_dropout: float = 0.2
    form: Literal["both", "flow", "regression"] = "both"


@dataclass(frozen=True)
class SamplingConfig:
    """How a mel spectrum is drawn.

    Attributes:
        steps: Euler steps; 0 takes the mean.
        guidance: weight of classifier-free guidance; 0 halves the work.
        temperature: deviation of the noise at the start; 1 is what training saw. On 300 validation recordings of the
            miniature's many voices .2 gave word error .147 and phone error .045, .6 gave .160 and .053 (the mean alone
            .148 and .041), at the same variance.
        bf16: the flow's network computes in bf16; mean, pitch and voicing do not.
    """

    steps: int = 4
    guidance: float = flow.GUIDANCE
    temperature: float = 0.2
    bf16: bool = False


class GroupCodes(NamedTuple):
    """Codes of G groups.

    Attributes:
        linguistic: [B, G, 2] int64.
        semantic: [B, G, 3] int64.
    """

    linguistic: torch.Tensor
    semantic: torch.Tensor


class AcousticPrediction(NamedTuple):
    """What the regression says of F = 6 G frames.

    Attributes:
        condition: [B, F, H], for the flow.
        mel: [B, F, M] mean, normalised.
        octaves: [B, F] pitch.
        voiced_logit: [B, F].
    """

    condition: torch.Tensor
    mel: torch.Tensor
    octaves: torch.Tensor
    voiced_logit: torch.Tensor


class AcousticModel(nn.Module):
    """See the module's docstring; `predict` and the velocity network are trained, `sample` speaks."""

    mel_mean: torch.Tensor
    mel_deviation: torch.Tensor

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = CodeEmbedding(config)
        blocks = (
            ConvNeXtBlock(config.hidden_size, 2 * config.hidden_size, kernel_size=9)
            for _ in range(config.num_condition_blocks)
        )
        self.condition_blocks = nn.ModuleList(blocks)
        self.regression = nn.Linear(config.hidden_size, config.num_mels + 2)
        self.velocity_net = VelocityNet(config)
        self.register_buffer("mel_mean", torch.zeros(config.num_mels))
        self.register_buffer("mel_deviation", torch.ones(config.num_mels))

    def predict(self, codes: GroupCodes) -> AcousticPrediction:
        """The regression, for G groups of `codes`."""
        hidden = self.embedding(codes)
        for block in self.condition_blocks:
            hidden = block(hidden)
        mel, octaves, voiced = self.regression(hidden).split((self.config.num_mels, 1, 1), dim=-1)
        return AcousticPrediction(hidden, mel, octaves[..., 0], voiced[..., 0])

    def normalize(self, mel: torch.Tensor) -> torch.Tensor:
        """Mel [..., M] in deviations from the mean of the training speech."""
        return (mel - self.mel_mean) / self.mel_deviation

    @torch.inference_mode()
    def sample(self, codes: GroupCodes, noise: torch.Tensor, sampling: SamplingConfig) -> VoiceFrames:
        """Draw the frames of G groups.

        Args:
            codes: G groups.
            noise: [B, 6 G, M] standard normal; decides the outcome together with the codes.
            sampling: how.
        """
        prediction = self.predict(codes)
        mel = prediction.mel.to(noise.dtype)
        if sampling.steps and self.config.form != "regression":
            field = self.field(prediction.condition, sampling.guidance)
            with torch.autocast(noise.device.type, torch.bfloat16, enabled=sampling.bf16):
                mel = flow.euler(field, sampling.temperature * noise, sampling.steps)
        voiced = (prediction.voiced_logit > 0).to(noise.dtype)
        return VoiceFrames(mel * self.mel_deviation + self.mel_mean, prediction.octaves.to(noise.dtype), voiced)

    def field(self, condition: torch.Tensor, guidance: float) -> flow.Field:
        """What the flow follows, given `condition [B, F, H]`; guidance 0 is the conditional model."""

        def conditional(y: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return self.velocity_net(y, time, condition)

        both = torch.cat((condition, torch.zeros_like(condition)))

        def with_guidance(y: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            velocity = self.velocity_net(torch.cat((y, y)), torch.cat((time, time)), both)
            with_codes, without = velocity.chunk(2)
            return flow.guided(with_codes, without, guidance)

        return with_guidance if guidance else conditional


class CodeEmbedding(nn.Module):
    """Codes → frames, aligned in time: a linguistic code lasts 3 of the 6 frames of its group, a semantic code 2."""

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.linguistic = nn.Embedding(config.linguistic_size, size)
        self.semantic = nn.Embedding(config.semantic_size, size)
        self.linguistic_place = nn.Parameter(0.02 * torch.randn(FRAMES_PER_GROUP // LINGUISTIC_PER_GROUP, size))
        self.semantic_place = nn.Parameter(0.02 * torch.randn(FRAMES_PER_GROUP // SEMANTIC_PER_GROUP, size))

    def forward(self, codes: GroupCodes) -> torch.Tensor:
        """G groups → [B, 6 G, H]."""
        linguistic = self.linguistic(codes.linguistic)[..., None, :] + self.linguistic_place  # [B, G, 2, 3, H]
        semantic = self.semantic(codes.semantic)[..., None, :] + self.semantic_place  # [B, G, 3, 2, H]
        return linguistic.flatten(1, 3) + semantic.flatten(1, 3)

    @torch.no_grad()
    def start_from(self, linguistic_vectors: torch.Tensor, semantic_vectors: torch.Tensor) -> None:
        """Give codes that mean alike like embeddings: a random projection of the tokenizers' own vectors.

        Args:
            linguistic_vectors: [1024, D].
            semantic_vectors: [4096, D'].

        Raises:
            ValueError: not one vector per code.
        """
        for table, vectors in ((self.linguistic, linguistic_vectors), (self.semantic, semantic_vectors)):
            if len(vectors) != table.num_embeddings:
                raise ValueError(f"{len(vectors)} code vectors for a codebook of {table.num_embeddings}")
            centred = vectors.float() - vectors.float().mean(dim=0)
            projected = centred @ torch.randn(vectors.shape[1], table.embedding_dim)
            table.weight.mul_(0.1).add_(projected / projected.std())


class VelocityNet(nn.Module):
    """The flow's field: noisy mel, time and condition → velocity."""

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, size), nn.SiLU(), nn.Linear(size, size))
        self.input = nn.Linear(config.num_mels + size, size)
        blocks: list[nn.Module] = []
        for i in range(config.num_flow_blocks):
            blocks.append(ConvNeXtBlock(size, 3 * size, kernel_size=7, condition_size=size))
            if i % 4 == 1:
                blocks.append(AttentionBlock(size, config.num_heads))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(size)
        self.output = nn.Linear(size, config.num_mels)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, y: torch.Tensor, time: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Noisy mel `y [B, F, M]`, `time [B]`, `condition [B, F, H]` (zeros: none) → velocity [B, F, M]."""
        step = self.time(_time_features(time))
        x = self.input(torch.cat((y, condition), dim=-1))
        for block in self.blocks:
            x = block(x, step) if isinstance(block, ConvNeXtBlock) else block(x)
        return flow.gaussian_velocity(y, time) + self.output(self.norm(x))


TIME_FEATURES = 64


def _time_features(time: torch.Tensor) -> torch.Tensor:
    """Times [B] in 0 … 1 → sines and cosines [B, TIME_FEATURES] of wavelengths 0.006 … 63."""
    count = TIME_FEATURES // 2
    rates = 1000 * torch.exp(torch.arange(count, device=time.device) * (-math.log(1e4) / (count - 1)))
    angles = time[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
