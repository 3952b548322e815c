"""A language-model run of seconds: random documents, two layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from megatron.core import dist_checkpointing
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.store import require_checkpoint
from megatron_aqaa.config import parse_config
from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary.for_text(160)
TEXT_VOCABULARY = Vocabulary(
    text_size=160, linguistic_size=0, semantic_size=0, size=160, audio_start=5, audio_end=6
)  # of a text model: it ends where the codebooks of the other begin

MEASURED = {
    "seconds", "tokens_per_second", "audio_seconds_per_second", "model_tflops", "data_wait_seconds", "memory_gib",
}  # fmt: skip
"""Fields of the log that a clock or the machine put there."""


def logged(run: Path) -> list[dict[str, float]]:
    """The log without what was measured."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


def stored(run: Path) -> dict[str, Tensor]:
    """Tensors of the newest checkpoint."""
    platform.initialize(platform.ParallelConfig())
    tensors = dist_checkpointing.load_plain_tensors(str(require_checkpoint(run)))
    platform.shutdown()
    return tensors


def write_data(directory: Path, vocabulary: Vocabulary = VOCABULARY) -> None:
    """40 documents of text and audio groups, half of each with loss, and the vocabulary file."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary.save(directory / "vocabulary.yaml")
    random = np.random.default_rng(0)
    with DocumentWriter(directory / "documents", vocabulary, with_mask=True) as writer:
        for _ in range(40):
            text = random.integers(10, 160, random.integers(3, 9))
            groups = random.integers(0, vocabulary.linguistic_size, (random.integers(1, 4), 5))
            groups += vocabulary.linguistic_start
            groups[:, 2:] += vocabulary.linguistic_size
            token_ids = np.concatenate([[vocabulary.bos], text, groups.ravel(), [vocabulary.eot]])
            mask = np.arange(len(token_ids)) >= len(token_ids) // 2
            writer.add(token_ids, mask.astype(np.uint8))


def tiny_config(data: Path, run: Path, parallel: dict[str, object] | None = None, **training: object) -> TrainConfig:
    """Four steps of four sequences; `parallel` and `training` replace single settings."""
    return parse_config(
        TrainConfig,
        {
            "run": run,
            "vocabulary": data / "vocabulary.yaml",
            "model": {
                "num_layers": 4,
                "hidden_size": 32,
                "ffn_hidden_size": 64,
                "num_attention_heads": 4,
                "num_query_groups": 2,
                "params_dtype": "fp32",
            },
            "data": {
                "train": {str(data / "documents"): 1.0},
                "sequence_length": 64,
                "packing": "whole",
                "text_loss_weight": 3,
            },
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1, "embedding_rate_multiplier": 5.0},
            "training": {"steps": 4, "micro_batch_size": 2, "global_batch_size": 4, "save_interval": 2, **training},
            "parallel": parallel or {},
        },
    )
