"""A flow model of a few thousand weights, and streams for it."""

from __future__ import annotations

import torch

from megatron_aqaa.audio.mel import MelConfig
from megatron_aqaa.vocoder.cosyvoice.conformer import ConformerConfig
from megatron_aqaa.vocoder.cosyvoice.estimator import EstimatorConfig
from megatron_aqaa.vocoder.cosyvoice.flow_loss import FlowBatch
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig, FlowModel, TokenBatch

MEL = MelConfig(sample_rate_hz=22050, num_mels=16, n_fft=1024, win_length=1024, hop_length=256)
ENCODER = ConformerConfig(input_size=16, output_size=16, attention_heads=2, linear_units=32, num_blocks=2)
ESTIMATOR = EstimatorConfig(channels=(16, 16), num_transformer_blocks=1, num_mid_blocks=2, num_heads=2, head_size=8)
CONFIG = FlowConfig(vocab_size=50, mel=MEL, encoder=ENCODER, estimator=ESTIMATOR)


def tiny_flow(config: FlowConfig = CONFIG) -> FlowModel:
    torch.manual_seed(0)
    return FlowModel(config).eval()


def streams(batch: int, size: int, lengths: list[int] | None = None, seed: int = 0) -> TokenBatch:
    source = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (batch, size), generator=source)
    return TokenBatch(tokens, None if lengths is None else torch.tensor(lengths))


def recordings(batch: int, size: int, seed: int = 0) -> FlowBatch:
    """Streams with a mel that is a smooth function of nothing in particular."""
    tokens = streams(batch, size, seed=seed)
    source = torch.Generator().manual_seed(seed + 1)
    frames = CONFIG.num_frames(size)
    mel = torch.randn(batch, frames, MEL.num_mels, generator=source)
    return FlowBatch(tokens, torch.nn.functional.avg_pool1d(mel.transpose(1, 2), 5, 1, 2).transpose(1, 2) * 2 - 4)
