"""Tiny Hugging Face models on disk, in the three families, for the tests of conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_aqaa.checkpoint.conversion.families import VOCABULARY_KEY, read_config
from megatron_aqaa.checkpoint.mapping import huggingface_shapes
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=60, linguistic_size=16, semantic_size=32, size=110, audio_start=108, audio_end=109)
_COMMON = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "rms_norm_eps": 1e-5,
    "vocab_size": 110,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
_ROPE = {
    **_COMMON,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "step1": {
        **_COMMON,
        "model_type": "step1",
        "architectures": ["Step1ForCausalLM"],
        "num_attention_groups": 2,
        "max_seq_len": 64,
        VOCABULARY_KEY: vars(VOCABULARY),
    },
    "llama": {**_ROPE, "model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "qwen2": {**_ROPE, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_theta": 1000000.0},
}


def configuration(family: str, **changes: Any) -> dict[str, Any]:
    return {**CONFIGS[family], **changes}


def random_tensors(config: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Weights that make logits of about 1: norms near 1, matrices scaled by their width."""
    described = read_config(config, "tiny")
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in huggingface_shapes(described.model, described.vocabulary_rows).items():
        noise = torch.randn(shape, generator=generator)
        centre, width = (1.0, 0.1) if "norm" in name else (0.0, shape[-1] ** -0.5 if len(shape) > 1 else 0.3)
        found[name] = (centre + width * noise).to(dtype)
    return found


def write_model(
    path: Path, config: dict[str, Any], tensors: dict[str, Tensor] | None = None, num_files: int = 1
) -> dict[str, Tensor]:
    """Write a directory, and return its tensors. Several files hold every n-th tensor each, in a mixed order."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config, indent=4))
    if tensors is None:
        tensors = random_tensors(config, getattr(torch, config["torch_dtype"]))
    names = list(tensors)
    if num_files == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return tensors
    weight_map = {}
    for index in range(num_files):
        file = f"model-{index + 1:05d}-of-{num_files:05d}.safetensors"
        save_file({n: tensors[n] for n in names[index::num_files]}, path / file, metadata={"format": "pt", "by": "us"})
        weight_map |= dict.fromkeys(names[index::num_files], file)
    index_values = {"metadata": {"total_size": sum(it.nbytes for it in tensors.values())}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index_values, indent=2, sort_keys=True))
    return tensors
