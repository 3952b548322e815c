"""A model and a vocabulary that are small and awkward: padded rows, more heads than a power of two, shared keys."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_aqaa.model import ModelConfig
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=60, linguistic_size=16, semantic_size=32, size=110, audio_start=108, audio_end=109)
TINY = ModelConfig(
    num_layers=2,
    hidden_size=48,
    ffn_hidden_size=64,
    num_attention_heads=12,
    num_query_groups=2,
    kv_channels=8,
    max_sequence_length=64,
    params_dtype="fp32",
)


def variant(**changes: Any) -> ModelConfig:
    return dataclasses.replace(TINY, **changes)
