"""How the full-size flow model draws mel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_aqaa.vocoder import flow
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowModel, TokenBatch


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

    def draw(self, model: FlowModel, tokens: Tensor, noise: Tensor, edges: tuple[int, ...] = ()) -> Tensor:
        """Mel [B, F, M] float32 of whole streams.

        Args:
            model: draws.
            tokens: as in `TokenBatch`.
            noise: [B, F, M] standard normal.
            edges: of chunks, as in `FlowModel.masks`.
        """
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=self.bf16):
            noise = self.temperature * noise
            return model.sample(TokenBatch(tokens), noise, self.steps, self.guidance, edges).float()
