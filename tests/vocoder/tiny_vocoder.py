"""A vocoder of a few thousand weights, untrained but not silent."""

from __future__ import annotations

import numpy as np
import torch

from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.acoustic import AcousticConfig, AcousticModel, GroupCodes, SamplingConfig
from megatron_aqaa.vocoder.generator import Generator, GeneratorConfig
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder

VOCABULARY = Vocabulary.for_text(20)
ACOUSTIC = AcousticConfig(hidden_size=16, num_condition_blocks=2, num_flow_blocks=2, num_heads=2)
GENERATOR = GeneratorConfig(hidden_size=16, inner_size=32, num_blocks=2)


def tiny_acoustic() -> AcousticModel:
    """Weights as initialised, but a flow that moves, a plausible mel and a mostly voiced voice."""
    torch.manual_seed(0)
    model = AcousticModel(ACOUSTIC)
    torch.nn.init.normal_(model.velocity_net.output.weight, std=0.2)
    torch.nn.init.constant_(model.regression.bias[-1:], 0.3)
    model.mel_mean.fill_(-4.0)
    return model.eval()


def tiny_generator() -> Generator:
    """Filters that the network bends a little."""
    torch.manual_seed(1)
    model = Generator(GENERATOR)
    torch.nn.init.normal_(model.output.weight, std=0.05)
    return model.eval()


def tiny_vocoder(sampling: SamplingConfig | None = None) -> TokenVocoder:
    return TokenVocoder(tiny_acoustic(), tiny_generator(), VOCABULARY, sampling)


def random_ids(groups: int, seed: int = 0) -> np.ndarray:
    """Merged ids [5 groups]."""
    random = np.random.default_rng(seed)
    starts = [VOCABULARY.linguistic_start] * 2 + [VOCABULARY.semantic_start] * 3
    return (random.integers(0, 1024, (groups, 5)) + starts).ravel()


def random_codes(batch: int, groups: int, seed: int = 0) -> GroupCodes:
    source = torch.Generator().manual_seed(seed)
    return GroupCodes(
        torch.randint(1024, (batch, groups, 2), generator=source),
        torch.randint(4096, (batch, groups, 3), generator=source),
    )
