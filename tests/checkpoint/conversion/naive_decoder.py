"""The three families from their definitions, on Hugging Face tensors: what converted models are tested against."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def logits(config: dict[str, Any], tensors: dict[str, Tensor], token_ids: Tensor) -> Tensor:
    """[B, S, V] in float64; rotary angles in float32, as everywhere."""
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    hidden = weights["model.embed_tokens.weight"][token_ids]
    for layer in range(config["num_hidden_layers"]):
        mine = {
            name.removeprefix(f"model.layers.{layer}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        hidden = hidden + attention(config, mine, norm(config, hidden, mine["input_layernorm.weight"]))
        normed = norm(config, hidden, mine["post_attention_layernorm.weight"])
        gate, up = (normed @ mine[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        hidden = hidden + (torch.nn.functional.silu(gate) * up) @ mine["mlp.down_proj.weight"].T
    hidden = norm(config, hidden, weights["model.norm.weight"])
    tied = config["tie_word_embeddings"]
    return hidden @ weights["model.embed_tokens.weight" if tied else "lm_head.weight"].T


def norm(config: dict[str, Any], hidden: Tensor, weight: Tensor) -> Tensor:
    return hidden / (hidden.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * weight


def attention(config: dict[str, Any], weights: dict[str, Tensor], hidden: Tensor) -> Tensor:
    heads = config["num_attention_heads"]
    groups = config.get("num_attention_groups") or config["num_key_value_heads"]
    batch, length, width = hidden.shape
    size = config.get("head_dim") or width // heads
    q, k, v = (
        (hidden @ weights[f"self_attn.{x}_proj.weight"].T + weights.get(f"self_attn.{x}_proj.bias", 0.0))
        .view(batch, length, -1, size)
        .transpose(1, 2)
        for x in "qkv"
    )
    if config["model_type"] != "step1":
        q, k = (rotate(x, config["rope_theta"]) for x in (q, k))
    mixed = torch.empty_like(q)
    for head in range(heads):
        group = head * groups // heads
        scores = q[:, head] @ k[:, group].transpose(1, 2) / math.sqrt(size)
        for i in range(length):
            for j in range(length):
                if j > i:
                    scores[:, i, j] = -math.inf
                elif config["model_type"] == "step1":
                    scores[:, i, j] -= slope(head, heads) * math.sqrt(i - j)
        mixed[:, head] = scores.softmax(-1) @ v[:, group]
    return mixed.transpose(1, 2).reshape(batch, length, -1) @ weights["self_attn.o_proj.weight"].T


def slope(head: int, heads: int) -> float:
    n = 2 ** int(math.log2(heads))
    return 2 ** (-8 * (head + 1) / n) if head < n else 2 ** (-4 * (2 * (head - n) + 1) / n)


def rotate(x: Tensor, theta: float) -> Tensor:
    size = x.shape[-1]
    frequencies = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.outer(torch.arange(x.shape[-2], dtype=torch.float32), frequencies).repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * angles.cos().double() + torch.cat([-second, first], -1) * angles.sin().double()
