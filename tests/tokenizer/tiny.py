"""A corpus and a tokenizer of a few kilobytes for tests: tones that change with the phone, random encoders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from megatron_aqaa.network_file import save_network
from megatron_aqaa.tokenizer.centroids import save_centroids
from megatron_aqaa.tokenizer.layers import EncoderConfig
from megatron_aqaa.tokenizer.linguistic import LinguisticConfig, LinguisticEncoder
from megatron_aqaa.tokenizer.semantic import SemanticConfig, SemanticEncoder
from megatron_aqaa.tokenizer.text import TextConfig, TextTokenizer, train_text_model

PHONES = ["_", "a", "i", "s"]
TONES_HZ = {"a": (150, 700), "i": (150, 2500), "s": (0, 6000)}
TEXTS = ["what is two plus two", "that makes four", "the sky is blue", "say it slowly", "jump over the lazy dog"]
HF_MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ENCODER = EncoderConfig(width=32, num_heads=2, kernel_size=5, attention_interval=2)


def write_text_model(directory: Path, size: int = 40) -> TextTokenizer:
    """Train a small text model and write it and its vocabulary."""
    train_text_model(TEXTS, directory / "text.model", TextConfig(size=size))
    tokenizer = TextTokenizer(directory / "text.model")
    tokenizer.vocabulary().save(directory / "vocabulary.yaml")
    return tokenizer


def write_byte_pairs(directory: Path) -> Path:
    """Write a byte-level `tokenizer.json` of 293 ids as Qwen and Llama 3 have it, markers behind the pieces."""
    import tokenizers  # not everywhere: it comes with the extra [hf]

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(list(HF_MARKERS))
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def write_tokenizer(directory: Path) -> Path:
    """Write a complete tokenizer directory with random weights."""
    torch.manual_seed(0)
    write_text_model(directory)
    linguistic = LinguisticEncoder(LinguisticConfig(encoder=ENCODER, num_layers=2), PHONES)
    save_network(linguistic, directory / "linguistic.pt", units=PHONES)
    semantic = SemanticEncoder(SemanticConfig(encoder=ENCODER, num_layers=2), PHONES)
    save_network(semantic, directory / "semantic.pt", units=PHONES)
    save_centroids(torch.randn(1024, ENCODER.width), directory / "linguistic_codebook.npy")
    return directory


def speech(seed: int, num_groups: int) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """[N] samples at 16 kHz of random "phones" of 80–160 ms, and their start times."""
    random = np.random.default_rng(seed)
    time_s = np.arange(num_groups * 1920) / 16000
    samples, phones, start_s = 0.01 * random.standard_normal(len(time_s)), [], 0.0
    while start_s < time_s[-1]:
        name, length_s = str(random.choice(PHONES)), random.uniform(0.08, 0.16)
        inside = (time_s >= start_s) & (time_s < start_s + length_s)
        for tone_hz in TONES_HZ.get(name, ()):
            samples[inside] += 0.2 * np.sin(2 * np.pi * tone_hz * time_s[inside])
        phones.append((round(start_s, 4), name))
        start_s += length_s
    return samples.astype(np.float32), phones


def write_corpus(directory: Path, num_utterances: int, num_groups: int = 4) -> Path:
    """Write waves of `num_groups` … `num_groups + 4` groups and a manifest; each fourth line is an unseen voice."""
    (directory / "wav").mkdir(parents=True)
    lines = []
    for i in range(num_utterances):
        samples, phones = speech(i, num_groups + i % 5)
        soundfile.write(directory / f"wav/{i}.wav", samples, 16000, subtype="PCM_16")
        record = {"id": i, "audio": f"wav/{i}.wav", "duration_s": len(samples) / 16000, "text": TEXTS[i % 5]}
        split = "unseen_voice" if i % 4 == 3 else "train"
        lines.append(json.dumps(record | {"role": "user", "split": split, "phones": phones}))
    manifest = directory / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
