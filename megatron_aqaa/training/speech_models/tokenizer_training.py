"""Training the text model and both speech tokenizers, each from one configuration into one tokenizer directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa import platform
from megatron_aqaa.config import save_config
from megatron_aqaa.data.manifest import read_recordings, select
from megatron_aqaa.network_file import save_network
from megatron_aqaa.tokenizer.centroids import save_centroids
from megatron_aqaa.tokenizer.feature_store import FeatureStore
from megatron_aqaa.tokenizer.front_ends import FrontEndKind
from megatron_aqaa.tokenizer.layers import valid_frames
from megatron_aqaa.tokenizer.linguistic import FRAMES_PER_CODE, LinguisticConfig, LinguisticEncoder
from megatron_aqaa.tokenizer.semantic import SemanticConfig, SemanticEncoder
from megatron_aqaa.tokenizer.text import TextConfig, TextTokenizer, train_text_model
from megatron_aqaa.training.speech_models.fit import FitConfig, fit
from megatron_aqaa.training.speech_models.kmeans import KMeansConfig, fit_kmeans
from megatron_aqaa.training.speech_models.supervision import SupervisionConfig
from megatron_aqaa.training.speech_models.tokenizer_scores import (
    Scored,
    ScoredSpeech,
    Scores,
    linguistic_scores,
    semantic_scores,
)
from megatron_aqaa.training.speech_models.tokenizer_steps import (
    Augmentation,
    SemanticWeights,
    SpeechBatches,
    evaluation_batches,
    linguistic_losses,
    semantic_losses,
)


@dataclass(frozen=True)
class TextTrainingConfig:
    """The text model.

    Attributes:
        manifest: `manifest.jsonl`; the `text` of every line is trained on.
        output: tokenizer directory; receives `text.model` and `vocabulary.yaml`.
        split: lines of this split only.
        model: settings of the text model.
    """

    manifest: Path
    output: Path
    split: str = "train"
    model: TextConfig = TextConfig()


@dataclass(frozen=True)
class SpeechTrainingConfig:
    """What both speech tokenizers are trained on.

    Attributes:
        features: a feature directory.
        output: tokenizer directory.
        fit: schedule and optimizer.
        batch_size: utterances a step.
        supervision: what the encoder learns to recognise.
        augmentation: noise and masks.
        trained: splits to train on.
        held_out: splits whose scores are printed.
        max_scored: utterances of either kind that are scored.
    """

    features: Path
    output: Path
    fit: FitConfig
    batch_size: int = 16
    supervision: SupervisionConfig = SupervisionConfig()
    augmentation: Augmentation = Augmentation()
    trained: tuple[str, ...] = ("train",)
    held_out: tuple[str, ...] = ("unseen_voice",)
    max_scored: int = 2000

    def speech(self, store: FeatureStore) -> ScoredSpeech:
        """Utterances of the trained and of the held-out splits that are scored, spread over the corpus."""
        trained, held_out = store.split(*self.trained), store.split(*self.held_out)
        if not held_out:
            raise ValueError(f"{self.features}: no utterance of the splits {self.held_out}; name one in `held_out`")
        parts = [part[:: -(-len(part) // self.max_scored)] for part in (trained, held_out)]
        return ScoredSpeech(store, self.supervision.of(store), *parts)


@dataclass(frozen=True)
class LinguisticTrainingConfig(SpeechTrainingConfig):
    """The linguistic encoder, then its codebook from the states of `kmeans_utterances` utterances."""

    model: LinguisticConfig = LinguisticConfig()
    kmeans: KMeansConfig = KMeansConfig()
    kmeans_utterances: int = 5000


@dataclass(frozen=True)
class SemanticTrainingConfig(SpeechTrainingConfig):
    """The semantic encoder with its quantizer."""

    model: SemanticConfig = SemanticConfig()
    weights: SemanticWeights = SemanticWeights()


def train_text(config: TextTrainingConfig) -> Scores:
    """Train the text model and write the vocabulary that follows from it; returns pieces per sentence."""
    recordings = select(read_recordings(config.manifest), config.split)
    texts = sorted({recording.text for recording in recordings if recording.text})
    train_text_model(texts, config.output / "text.model", config.model)
    tokenizer = TextTokenizer(config.output / "text.model")
    tokenizer.vocabulary().save(config.output / "vocabulary.yaml")
    save_config(config, config.output / "text.yaml")
    return {"sentences": len(texts), "pieces_per_sentence": sum(len(tokenizer.encode(t)) for t in texts) / len(texts)}


def train_linguistic(config: LinguisticTrainingConfig) -> Scores:
    """Train the linguistic encoder and cluster its states; returns scores on held-out voices."""
    speech = _open(config, config.model.front_end)
    model = LinguisticEncoder(config.model, speech.supervision.units)
    _train(model, linguistic_losses(config.augmentation, speech.supervision), config, speech, "linguistic")
    if not platform.Replicas.join().is_first:
        return {}
    centroids = _cluster(model, speech, config)
    save_network(model, config.output / "linguistic.pt", units=list(model.units))
    save_centroids(centroids, config.output / "linguistic_codebook.npy")
    return _finish(config, linguistic_scores(model, centroids, speech), "linguistic")


def train_semantic(config: SemanticTrainingConfig) -> Scores:
    """Train the semantic encoder; returns scores on held-out voices."""
    speech = _open(config, config.model.front_end)
    model = SemanticEncoder(config.model, speech.supervision.units)
    losses = semantic_losses(config.augmentation, config.weights, speech.supervision)
    _train(model, losses, config, speech, "semantic")
    if not platform.Replicas.join().is_first:
        return {}
    save_network(model, config.output / "semantic.pt", units=list(model.units))
    return _finish(config, semantic_scores(model, speech), "semantic")


def _open(config: SpeechTrainingConfig, front_end: FrontEndKind) -> ScoredSpeech:
    """What is trained on; all that can be wrong with it is found now, not after the training."""
    store = FeatureStore(config.features)
    if store.front_end != front_end:
        raise ValueError(
            f"{config.features}: made by the front end {store.front_end!r}, and this encoder hears {front_end!r}; run "
            f"tools/extract_features.py with front_end={front_end} into another directory"
        )
    return config.speech(store)


def _train(
    model: Any, losses: Callable[..., Any], config: SpeechTrainingConfig, speech: ScoredSpeech, name: str
) -> None:
    store, supervision = speech.store, speech.supervision
    model.feature_norm.mean.copy_(torch.tensor(store.index["mean"]))
    model.feature_norm.deviation.copy_(torch.tensor(store.index["deviation"]))
    batches = SpeechBatches(store, supervision, store.split(*config.trained), config.batch_size, config.fit.seed)
    fit(model, batches, losses, config.fit, config.output / name, f"{name} tokenizer")


@torch.inference_mode()
def _cluster(model: LinguisticEncoder, speech: ScoredSpeech, config: LinguisticTrainingConfig) -> torch.Tensor:
    """Centroids [K, D] of the hidden states of the trained split."""
    utterances = speech.store.split(*config.trained)
    chosen = utterances[:: -(-len(utterances) // config.kmeans_utterances)]
    states = []
    for batch in evaluation_batches(speech.store, speech.supervision, chosen):
        hidden = model(batch.fbank, batch.lengths)
        states.append(hidden[valid_frames(batch.lengths // FRAMES_PER_CODE, hidden.shape[1])])
    return fit_kmeans(torch.cat(states), config.kmeans)


def _finish(config: SpeechTrainingConfig, scored: Scored, name: str) -> Scores:
    save_config(config, config.output / f"{name}.yaml")
    (config.output / name / "scores.json").write_text(json.dumps(scored.scores))
    scored.report.save(config.output / name / "codebook.json")
    return scored.scores
