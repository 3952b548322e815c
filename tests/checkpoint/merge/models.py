"""Tiny models on disk for the tests of merging, and for the script that makes their goldens."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, VOCABULARY = 4, 6, 2, 2, 1, 7
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama or Qwen2 model."""
    head = HIDDEN // HEADS
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", HEADS * head), ("k", KV_HEADS * head), ("v", KV_HEADS * head)):
            found[f"{prefix}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            if kind == "qwen2":
                found[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        found[f"{prefix}self_attn.o_proj.weight"] = (HIDDEN, HEADS * head)
        found[f"{prefix}mlp.gate_proj.weight"] = found[f"{prefix}mlp.up_proj.weight"] = (FFN, HIDDEN)
        found[f"{prefix}mlp.down_proj.weight"] = (HIDDEN, FFN)
        found[f"{prefix}input_layernorm.weight"] = found[f"{prefix}post_attention_layernorm.weight"] = (HIDDEN,)
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def num_elements(kind: str) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes(kind).values())


def split(flat: Tensor, kind: str) -> dict[str, Tensor]:
    """The tensors of a model that was stored as one vector."""
    sizes = [torch.Size(shape).numel() for shape in shapes(kind).values()]
    return {
        name: part.view(shape).clone()
        for part, (name, shape) in zip(flat.split(sizes), shapes(kind).items(), strict=True)
    }


def join(tensors: dict[str, Tensor], kind: str) -> Tensor:
    """One vector of all tensors, in the order of `shapes`."""
    return torch.cat([tensors[name].flatten() for name in shapes(kind)])


def write_model(path: Path, tensors: dict[str, Tensor], kind: str = "llama", num_files: int = 1) -> Path:
    """A Hugging Face directory with a configuration, in `num_files` safetensors files."""
    path.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    per_file = -(-len(names) // num_files)
    files = [f"model-{number:05d}-of-{num_files:05d}.safetensors" for number in range(1, num_files + 1)]
    if num_files == 1:
        files = ["model.safetensors"]
    weight_map = {}
    for index, file in enumerate(files):
        part = names[index * per_file : (index + 1) * per_file]
        save_file({name: tensors[name] for name in part}, path / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    if num_files > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        (path / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map})
        )
    (path / "config.json").write_text(json.dumps(configuration(tensors, kind)))
    return path


def configuration(tensors: dict[str, Tensor], kind: str) -> dict[str, object]:
    return {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    }


def random_models(kind: str, dtype: torch.dtype, num_models: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """A base model, and others that lie near it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(num_elements(kind), generator=generator)
    others = [base + 0.2 * torch.randn(base.shape, generator=generator) for _ in range(num_models - 1)]
    return [split(flat.to(dtype), kind) for flat in (base, *others)]
