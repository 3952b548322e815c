"""The two training jobs of the vocoder: independent of each other, so that they can run side by side.

Each writes `model.pt`, its configuration, the log, and `report.json` with its error on held-out recordings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_aqaa import platform
from megatron_aqaa.config import save_config
from megatron_aqaa.network_file import save_network
from megatron_aqaa.tokenizer.open import open_tokenizer
from megatron_aqaa.training.fit import FitConfig, fit
from megatron_aqaa.training.vocoder_steps import acoustic_losses, generator_losses, mel_l1
from megatron_aqaa.training.voice_corpus import RandomCrops, VoiceBatch, VoiceCorpus, VoiceSelection, load_voice
from megatron_aqaa.vocoder.acoustic import AcousticConfig, AcousticModel, SamplingConfig
from megatron_aqaa.vocoder.frames import FrameAnalysis
from megatron_aqaa.vocoder.generator import Generator, GeneratorConfig
from megatron_aqaa.vocoder.losses import multi_resolution_stft_loss

Report = dict[str, float]
NUM_HELD_OUT = 100


@dataclass(frozen=True)
class GeneratorTrainConfig:
    """One run of the generator.

    Attributes:
        speech: whose recordings it learns from.
        held_out: split of the recordings it is measured on.
        output: receives all files.
        fit: schedule and optimizer.
        model: sizes.
        batch_size: crops of a step.
        crop_groups: length of a crop in groups of 120 ms.
    """

    speech: VoiceSelection
    output: Path
    fit: FitConfig
    held_out: str = "validation"
    model: GeneratorConfig = GeneratorConfig()
    batch_size: int = 8
    crop_groups: int = 5


@dataclass(frozen=True)
class AcousticTrainConfig:
    """One run of the acoustic model.

    Attributes:
        speech: whose recordings it learns from.
        tokens: prefix of the token data set, sequence i for line i of the manifest.
        tokenizer: directory of the tokenizer that made them; gives the vocabulary and the vectors that the code
            embeddings start from.
        output: receives all files.
        fit: schedule and optimizer.
        held_out: split of the recordings it is measured on.
        model: sizes.
        batch_size: crops of a step.
        crop_groups: length of a crop in groups of 120 ms.
    """

    speech: VoiceSelection
    tokens: Path
    tokenizer: Path
    output: Path
    fit: FitConfig
    held_out: str = "validation"
    model: AcousticConfig = AcousticConfig()
    batch_size: int = 24
    crop_groups: int = 10


@dataclass(frozen=True)
class VoiceTrainConfig:
    """Both halves of a vocoder, one after the other.

    Attributes:
        generator: of waveforms.
        acoustic: of what the generator is told.
    """

    generator: GeneratorTrainConfig
    acoustic: AcousticTrainConfig


def train_voice(config: VoiceTrainConfig) -> Report:
    """Train both; their errors by the names of the halves."""
    halves = {"generator": train_generator(config.generator), "acoustic": train_acoustic(config.acoustic)}
    return {f"{half}.{name}": value for half, report in halves.items() for name, value in report.items()}


def train_generator(config: GeneratorTrainConfig) -> Report:
    """Train, save, and measure on held-out recordings."""
    torch.manual_seed(config.fit.seed)
    torch.set_num_threads(config.fit.num_threads)
    analysis = FrameAnalysis(config.model.mel)
    corpus = load_voice(config.speech, analysis)
    model = Generator(config.model)
    batches = RandomCrops(corpus, config.batch_size, config.crop_groups, config.fit.seed)
    fit(model, batches, generator_losses, config.fit, config.output, "generator")
    held_out = load_voice(_held_out(config), analysis, limit=NUM_HELD_OUT)
    return _finish(model, config, generator_report(model, held_out))


def train_acoustic(config: AcousticTrainConfig) -> Report:
    """Train, save, and measure on held-out recordings."""
    torch.manual_seed(config.fit.seed)
    torch.set_num_threads(config.fit.num_threads)
    tokenizer = open_tokenizer(config.tokenizer)
    analysis = FrameAnalysis()
    corpus = load_voice(config.speech, analysis, config.tokens, tokenizer.vocabulary)
    model = AcousticModel(config.model)
    model.embedding.start_from(*tokenizer.code_vectors())
    model.mel_mean.copy_(corpus.frames.mel[0].mean(dim=0))
    model.mel_deviation.copy_(corpus.frames.mel[0].std(dim=0))
    batches = RandomCrops(corpus, config.batch_size, config.crop_groups, config.fit.seed)
    fit(model, batches, acoustic_losses, config.fit, config.output, "acoustic model")
    if platform.Replicas.join().is_first:
        tokenizer.vocabulary.save(config.output / "vocabulary.yaml")
    held_out = load_voice(_held_out(config), analysis, config.tokens, tokenizer.vocabulary, limit=NUM_HELD_OUT)
    return _finish(model, config, acoustic_report(model, held_out))


@torch.inference_mode()
def generator_report(model: Generator, corpus: VoiceCorpus) -> Report:
    """Errors of speech made from natural frames: log-mel L1 and multi-resolution STFT, means over recordings."""
    rows = []
    for recording in corpus.recordings():
        generated = model(recording.frames)
        stft = multi_resolution_stft_loss(generated, recording.waveform)
        rows.append({"mel_l1": mel_l1(model.log_mel, generated, recording.waveform), "stft": stft})
    return _mean(rows)


@torch.inference_mode()
def acoustic_report(model: AcousticModel, corpus: VoiceCorpus, sampling: SamplingConfig | None = None) -> Report:
    """Errors of the frames made from tokens.

    `mel_l1_mean` and `mel_l1_drawn` without and with the flow, `variance_ratio` of drawn to natural log-mel,
    `f0_error` as the mean relative error where both are voiced, `voicing_error` as a share of frames.
    """
    drawing = sampling or SamplingConfig()
    return _mean(_acoustic_errors(model, recording, drawing) for recording in corpus.recordings())


def _acoustic_errors(
    model: AcousticModel, recording: VoiceBatch, sampling: SamplingConfig
) -> Mapping[str, torch.Tensor]:
    assert recording.codes is not None
    natural = recording.frames
    noise = torch.randn_like(natural.mel)
    mean = model.sample(recording.codes, noise, SamplingConfig(steps=0))
    drawn = model.sample(recording.codes, noise, sampling)
    both = (natural.voiced * mean.voiced).bool()
    error = 2 ** (mean.octaves - natural.octaves)[both].abs() - 1
    return {
        "mel_l1_mean": (mean.mel - natural.mel).abs().mean(),
        "mel_l1_drawn": (drawn.mel - natural.mel).abs().mean(),
        "variance_ratio": drawn.mel.var() / natural.mel.var(),
        "f0_error": error.mean() if both.any() else torch.zeros(()),
        "voicing_error": (natural.voiced != mean.voiced).float().mean(),
    }


def _held_out(config: GeneratorTrainConfig | AcousticTrainConfig) -> VoiceSelection:
    return VoiceSelection(config.speech.manifest, config.speech.role, config.held_out)


def _mean(rows: Iterable[Mapping[str, torch.Tensor]]) -> Report:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(float(value))
    return {name: sum(column) / len(column) for name, column in values.items()}


def _finish(
    model: Generator | AcousticModel, config: GeneratorTrainConfig | AcousticTrainConfig, report: Report
) -> Report:
    if not platform.Replicas.join().is_first:
        return {}
    save_config(config, config.output / "config.yaml")
    (config.output / "report.json").write_text(json.dumps(report, indent=1))
    save_network(model, config.output / "model.pt")  # last: a directory with a model is complete
    return report
