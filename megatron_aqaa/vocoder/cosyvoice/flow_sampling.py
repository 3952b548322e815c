"""How the full-size flow model draws mel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from megatron_aqaa.vocoder import flow
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowModel, TokenBatch
from megatron_aqaa.vocoder.cosyvoice.spoken_tokens import SpokenTokens


@dataclass(frozen=True)
class FlowSampling:
    """How a mel spectrum is drawn; the defaults are the published ones.

    Attributes:
        steps: Euler steps.
        guidance: weight of classifier-free guidance; 0 halves the work.
        temperature: deviation of the noise at the start.
        bf16: the flow model computes in bf16.
    """

    steps: int = 10
    guidance: float = flow.GUIDANCE
    temperature: float = 1.0
    bf16: bool = False

    def draw(
        self,
        model: FlowModel,
        tokens: Tensor,
        noise: Tensor,
        edges: tuple[int, ...] = (),
        prompt: SpokenTokens | None = None,
    ) -> Tensor:
        """Mel [B, F, M] float32 of whole streams, without the prompt's own P frames.

        Args:
            model: draws.
            tokens: as in `TokenBatch`; with a prompt B = 1.
            noise: [B, P + F, M] standard normal; P = 0 without a prompt.
            edges: of chunks of `tokens`, as in `FlowModel.masks`; a prompt belongs to the first one.
            prompt: voice to speak with, as if the tokens went on from it.

        Raises:
            ValueError: a prompt that does not fit itself, or a network that takes none.
        """
        told = None
        if prompt is not None:
            start, told = len(prompt.tokens), _told(prompt, model, noise)
            tokens = torch.cat((prompt.tokens[None].to(tokens.device), tokens), dim=1)
            edges = tuple(start + edge for edge in edges)
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=self.bf16):
            noise = self.temperature * noise
            mel = model.sample(TokenBatch(tokens), noise, self.steps, self.guidance, edges, prompt=told).float()
        return mel if prompt is None else mel[:, len(prompt.mel) :]


def _told(prompt: SpokenTokens, model: FlowModel, noise: Tensor) -> Tensor:
    """The prompt's mel, zeros after it."""
    expected = (model.config.num_frames(len(prompt.tokens)), model.config.mel.num_mels)
    if not len(prompt.tokens) or prompt.mel.shape != expected:
        raise ValueError(
            f"a voice prompt of {len(prompt.tokens)} tokens and mel {list(prompt.mel.shape)}; needed are whole groups "
            f"and mel {list(expected)}"
        )
    return functional.pad(prompt.mel, (0, 0, 0, noise.shape[1] - len(prompt.mel)))[None].to(noise.device)
