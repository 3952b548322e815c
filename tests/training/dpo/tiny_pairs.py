"""A preference run of seconds: random pairs, two layers, from a random model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from megatron_aqaa import platform
from megatron_aqaa.config import parse_config
from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from megatron_aqaa.training.lm_state import new_state
from megatron_aqaa.vocabulary import Vocabulary
from tests.training.tiny_run import logged

VOCABULARY = Vocabulary(text_size=60, linguistic_size=16, semantic_size=32, size=110, audio_start=108, audio_end=109)
Ids = list[int]


def document(prompt: Ids, answer: Ids) -> tuple[Ids, Ids]:
    """Token ids and mask."""
    return [*prompt, *answer], [0] * len(prompt) + [1] * len(answer)


def write_documents(prefix: Path, documents: list[tuple[Ids, Ids]], kind: str = "preference") -> Path:
    """A data set of (token ids, mask)."""
    with DocumentWriter(prefix, VOCABULARY, with_mask=True) as writer:
        for token_ids, mask in documents:
            writer.add(np.array(token_ids), np.array(mask, np.uint8))
    Path(f"{prefix}.json").write_text(json.dumps({"kind": kind}))
    return prefix


def write_pairs(prefix: Path, num_pairs: int, seed: int = 0) -> Path:
    """Spoken prompts; answers of text, groups of codes and more text."""
    random = np.random.default_rng(seed)
    documents = []
    for _ in range(num_pairs):
        prompt = [VOCABULARY.bos, VOCABULARY.audio_start, *groups(random, 1), VOCABULARY.audio_end]
        for _ in range(2):
            spoken = [VOCABULARY.audio_start, *groups(random, random.integers(1, 3)), VOCABULARY.audio_end]
            words = random.integers(10, 60, random.integers(2, 6)).tolist()
            documents.append(document(prompt, [*words[:2], *spoken, *words[2:], VOCABULARY.eot]))
    return write_documents(prefix, documents)


def groups(random: np.random.Generator, count: int) -> Ids:
    """Whole groups `[L L S S S]`."""
    codes = random.integers(0, VOCABULARY.linguistic_size, (count, 5)) + VOCABULARY.linguistic_start
    codes[:, 2:] += VOCABULARY.linguistic_size
    return [int(code) for code in codes.ravel()]


def write_start(folder: Path, model: dict[str, object] | None = None) -> None:
    """What a run starts from: the model `start`, two preference data sets and the vocabulary file, all in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    VOCABULARY.save(folder / "vocabulary.yaml")
    write_pairs(folder / "train", 40)
    write_pairs(folder / "held_out", 11, seed=1)
    config = pair_config(folder, "start", model=model)
    platform.initialize(config.parallel, seed=3)
    new_state(config.model, VOCABULARY, config.parallel, config.optimizer, steps=4).save(config.run, keep=1)
    platform.shutdown()


def pair_config(
    folder: Path,
    run: str,
    *,
    parallel: dict[str, object] | None = None,
    model: dict[str, object] | None = None,
    dpo: dict[str, object] | None = None,
    **training: object,
) -> DPOTrainConfig:
    """Four steps of four sequences from `start`; the rest replaces or adds single settings."""
    return parse_config(
        DPOTrainConfig,
        {
            "run": folder / run,
            "vocabulary": folder / "vocabulary.yaml",
            "model": {
                "num_layers": 4,
                "hidden_size": 32,
                "ffn_hidden_size": 64,
                "num_attention_heads": 4,
                "num_query_groups": 2,
                "init_method_std": 0.2,
                "params_dtype": "fp32",
                **(model or {}),
            },
            "data": {
                "directory": folder,
                "train": {"train": 1.0},
                "validation": ["held_out"],
                "sequence_length": 96,
                "packing": "whole",
            },
            "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.0},
            "training": {
                "steps": 4,
                "micro_batch_size": 2,
                "global_batch_size": 4,
                "save_interval": 2,
                "validation_interval": 4,
                "init_from": folder / "start",
                **training,
            },
            "parallel": parallel or {},
            "dpo": {"loss": "sigmoid", "beta": 0.5, **(dpo or {})},
        },
    )


def steps(run: Path) -> list[dict[str, float]]:
    """The log without what was seen on held-out pairs."""
    return [record for record in logged(run) if "loss" in record]
