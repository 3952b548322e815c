"""Makes `goldens/merge.safetensors` with mergekit, which the tests do not need.

    python3.11 -m venv mergekit-venv
    mergekit-venv/bin/pip install torch==2.13.0 mergekit==0.1.5
    PYTHONPATH=. mergekit-venv/bin/python tests/checkpoint/merge/make_goldens.py

The file holds each input and each result as one vector, and the configurations as JSON in its metadata, with BASE, A,
B, C for the models' paths.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import mergekit.merge
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

from tests.checkpoint.merge.models import join, random_models, write_model

GOLDENS = Path(__file__).parent / "goldens" / "merge.safetensors"
NAMES = ("BASE", "A", "B", "C")
KINDS = {"qwen2": torch.bfloat16, "llama": torch.float32}


def models(**parameters: list[Any]) -> list[dict[str, Any]]:
    """Entries for A, B, … with a value each."""
    count = max(map(len, parameters.values()))
    return [
        {"model": name, "parameters": {key: values[index] for key, values in parameters.items()}}
        for index, name in enumerate(NAMES[1 : count + 1])
    ]


MLP_FIRST = [{"filter": "mlp", "value": 2}, {"filter": "norm", "value": [1, 3]}, {"value": 0.5}]
CASES: dict[str, dict[str, Any]] = {
    "linear_5_5_1": {"merge_method": "linear", "models": models(weight=[5, 5, 1])},
    "linear_not_normalized": {
        "merge_method": "linear",
        "models": models(weight=[0.45, 0.45, 0.1]),
        "parameters": {"normalize": False},
    },
    "linear_filters": {"merge_method": "linear", "models": models(weight=[MLP_FIRST, 1, "3e-1"]), "base_model": "A"},
    "linear_out_dtype": {"merge_method": "linear", "models": models(weight=[1, 2]), "dtype": "float32"},
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "models": models(weight=[0.7, -0.3, 0.4]),
        "base_model": "BASE",
        "parameters": {"lambda": 0.8},
    },
    "task_arithmetic_normalized": {
        "merge_method": "task_arithmetic",
        "models": models(weight=[1, 2, 3]),
        "base_model": "BASE",
        "parameters": {"normalize": True},
    },
    "slerp": {
        "merge_method": "slerp",
        "models": [{"model": "BASE"}, {"model": "A"}],
        "base_model": "BASE",
        "parameters": {
            "t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": 0.25}, {"value": 0.6}]
        },
    },
    "ties": {
        "merge_method": "ties",
        "models": models(weight=[0.5, 0.3, 0.9], density=[0.5, 0.3, 1.0]),
        "base_model": "BASE",
        "parameters": {"int8_mask": True},
    },
    "ties_rescaled": {
        "merge_method": "ties",
        "models": models(weight=[0.5, 0.3, 0.9], density=[0.5, 0.3, 0]),
        "base_model": "BASE",
        "parameters": {"normalize": False, "rescale": True, "lambda": 1.2},
    },
    "dare_linear_dense": {
        "merge_method": "dare_linear",
        "models": models(weight=[0.5, 0.3, 0.9]),
        "base_model": "BASE",
    },
    "dare_ties_dense": {
        "merge_method": "dare_ties",
        "models": models(weight=[0.5, 0.3, 0.9], density=[1, 1, 1]),
        "base_model": "BASE",
        "parameters": {"normalize": True},
    },
    "model_stock": {
        "merge_method": "model_stock",
        "models": [{"model": name} for name in NAMES[1:]],
        "base_model": "BASE",
    },
}


def main() -> None:
    vectors: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, dtype in KINDS.items():
            for name, tensors in zip(NAMES, random_models(kind, dtype, len(NAMES), seed=len(kind)), strict=True):
                write_model(Path(folder) / kind / name, tensors, kind, num_files=2)
                vectors[f"{kind}/{name}"] = join(tensors, kind)
            for case, config in CASES.items():
                vectors[f"{kind}/{case}"] = join(merged(Path(folder) / kind, config), kind)
    save_file(vectors, GOLDENS, metadata={"cases": json.dumps(CASES), "mergekit": "0.1.5"})
    print(f"{GOLDENS}: {GOLDENS.stat().st_size} bytes")


def merged(folder: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Result of mergekit."""
    text = yaml.safe_dump(config)
    for name in NAMES:
        text = text.replace(f"model: {name}\n", f"model: {folder / name}\n")
    with tempfile.TemporaryDirectory() as output:
        parsed = MergeConfiguration.model_validate(yaml.safe_load(text))
        mergekit.merge.run_merge(parsed, output, MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False))
        return {name: tensor for file in Path(output).glob("*.safetensors") for name, tensor in load_file(file).items()}


if __name__ == "__main__":
    main()
