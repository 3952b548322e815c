"""A run directory with untrained networks of the smallest sizes and buzzes for speech: all that answering reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

from megatron_aqaa import platform
from megatron_aqaa.checkpoint import store
from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.model import ModelConfig, build_model
from megatron_aqaa.network_file import save_network
from megatron_aqaa.tokenizer.centroids import save_centroids
from megatron_aqaa.tokenizer.dual_codebook import DualCodebookTokenizer
from megatron_aqaa.tokenizer.layers import EncoderConfig
from megatron_aqaa.tokenizer.linguistic import LinguisticConfig, LinguisticEncoder
from megatron_aqaa.tokenizer.semantic import SemanticConfig, SemanticEncoder
from megatron_aqaa.tokenizer.text import TextConfig, TextTokenizer, train_text_model
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.acoustic import AcousticConfig, AcousticModel
from megatron_aqaa.vocoder.generator import Generator, GeneratorConfig

ANSWERS = ("it is blue", "that makes seven", "the opposite is cold")
SENTENCES = (*ANSWERS, "it says quack", "what is one plus two")
ENCODER = EncoderConfig(width=16, num_heads=2, kernel_size=3)
MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    init_method_std=0.3,
    params_dtype="fp32",
)


def make_run(run: Path) -> Path:
    """Write `tokenizer/`, `vocoder/` and `sft/` below `run`."""
    torch.manual_seed(0)
    vocabulary = _make_tokenizer(run / "tokenizer")
    save_network(AcousticModel(AcousticConfig(hidden_size=32)), run / "vocoder" / "acoustic" / "model.pt")
    vocabulary.save(run / "vocoder" / "acoustic" / "vocabulary.yaml")
    generator = GeneratorConfig(hidden_size=16, inner_size=32, num_blocks=1)
    save_network(Generator(generator), run / "vocoder" / "generator" / "model.pt")
    _make_language_model(run / "sft", vocabulary)
    return run


def make_speech(run: Path, questions_per_split: int = 4) -> None:
    """Write `speech/` and `tokens/`: buzzes that claim to be questions and answers."""
    tokenizer = DualCodebookTokenizer.load(run / "tokenizer")
    (run / "speech" / "wav").mkdir(parents=True)
    with DocumentWriter(run / "tokens" / "audio", tokenizer.vocabulary) as writer:
        records, period = [], 100  # samples: 160 Hz
        for line, record in enumerate(_script(questions_per_split)):
            length = 1920 * (4 + line % 3)
            waveform = np.arange(length) % period / period - 0.5 + np.random.default_rng(line).normal(0, 0.02, length)
            audio = f"wav/{line:06d}.wav"
            soundfile.write(run / "speech" / audio, waveform, 16_000)
            writer.add(tokenizer.token_ids(tokenizer.encode(waveform)))
            records.append({"id": line, "audio": audio, "duration_s": len(waveform) / 16_000, **record})
    (run / "speech" / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _script(questions_per_split: int) -> Iterator[dict[str, str]]:
    for answer in ANSWERS:
        for style in ("neutral", "slow"):
            for split in ("train", "validation"):
                yield {"text": answer, "speaker": "en-us+f2", "role": "assistant", "split": split, "style": style}
    for split in ("unseen_voice", "unseen_wording"):
        for number in range(questions_per_split):
            style, answer = ("neutral", "slow")[number % 2], ANSWERS[number % 3]
            question = {"text": f"question {number}", "speaker": "en-us+klatt3", "role": "user"}
            yield {**question, "split": split, "style": style, "answer": answer}


def _make_tokenizer(directory: Path) -> Vocabulary:
    train_text_model(SENTENCES, directory / "text.model", TextConfig(size=41))
    vocabulary = TextTokenizer(directory / "text.model").vocabulary()
    vocabulary.save(directory / "vocabulary.yaml")
    phones = ["_", "a", "b"]
    linguistic = LinguisticEncoder(LinguisticConfig(encoder=ENCODER, num_layers=1), phones)
    save_network(linguistic, directory / "linguistic.pt", units=phones)
    save_centroids(torch.randn(vocabulary.linguistic_size, ENCODER.width), directory / "linguistic_codebook.npy")
    semantic = SemanticEncoder(SemanticConfig(encoder=ENCODER, num_layers=1), phones)
    save_network(semantic, directory / "semantic.pt", units=phones)
    return vocabulary


def _make_language_model(directory: Path, vocabulary: Vocabulary) -> None:
    platform.initialize(platform.ParallelConfig(), seed=0)
    try:
        store.save_checkpoint(directory, 1, store.model_state(build_model(MODEL, vocabulary)), keep=1)
    finally:
        platform.shutdown()
    (directory / "config.yaml").write_text(yaml.safe_dump({"model": dataclasses.asdict(MODEL), "run": str(directory)}))
