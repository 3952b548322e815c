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
from megatron_aqaa.audio.mel import MelConfig
from megatron_aqaa.config import save_config
from megatron_aqaa.network_file import save_network
from megatron_aqaa.tokenizer.open import open_tokenizer
from megatron_aqaa.training.speech_models.fit import FitConfig, fit
from megatron_aqaa.training.speech_models.shares import on_device
from megatron_aqaa.training.speech_models.sound_board import NUM_SHOWN, SoundBoard, open_board
from megatron_aqaa.training.speech_models.vocoder_steps import acoustic_losses, generator_losses, mel_l1
from megatron_aqaa.training.speech_models.voice_corpus import RandomCrops, VoiceCorpus, VoiceSelection, load_voice
from megatron_aqaa.vocoder.acoustic import AcousticConfig, AcousticModel, SamplingConfig
from megatron_aqaa.vocoder.frames import FrameAnalysis, VoiceFrames
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
        tensorboard: show validations under `<output>/tensorboard`.
    """

    speech: VoiceSelection
    output: Path
    fit: FitConfig
    held_out: str = "validation"
    model: GeneratorConfig = GeneratorConfig()
    batch_size: int = 8
    crop_groups: int = 5
    tensorboard: bool = False


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
        tensorboard: show validations under `<output>/tensorboard`.
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
    tensorboard: bool = False


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
    held_out = load_voice(_held_out(config), analysis, limit=NUM_HELD_OUT)
    board = open_board(config.tensorboard, config.output)

    def validation(model: Generator, step: int) -> Report:
        return generator_report(model, held_out, board, step)

    fit(model, batches, generator_losses, config.fit, config.output, "generator", validation)
    return _finish(model, config, generator_report(model, held_out), board)


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
    held_out = load_voice(_held_out(config), analysis, config.tokens, tokenizer.vocabulary, limit=NUM_HELD_OUT)
    board = open_board(config.tensorboard, config.output)

    def validation(model: AcousticModel, step: int) -> Report:
        return acoustic_report(model, held_out, board=board, step=step)

    fit(model, batches, acoustic_losses, config.fit, config.output, "acoustic model", validation)
    if platform.Replicas.join().is_first:
        tokenizer.vocabulary.save(config.output / "vocabulary.yaml")
    return _finish(model, config, acoustic_report(model, held_out), board)


@torch.inference_mode()
def generator_report(model: Generator, corpus: VoiceCorpus, board: SoundBoard | None = None, step: int = 0) -> Report:
    """Errors of speech made from natural frames, always with the same noise: means over recordings.

    `mel_l1` of log-mel, `stft` at several resolutions.
    """
    source, rows, rate_hz = torch.Generator().manual_seed(0), [], model.config.mel.sample_rate_hz
    for index, recording in enumerate(corpus.recordings()):
        noise = torch.randn(recording.waveform.shape, generator=source)
        natural, frames, noise = on_device((recording.waveform, recording.frames, noise), _device(model))
        generated = model(frames, noise)
        stft = multi_resolution_stft_loss(generated, natural)
        rows.append({"mel_l1": mel_l1(model.log_mel, generated, natural), "stft": stft})
        if board and index < NUM_SHOWN:
            for name, waveform in (("generated", generated), ("natural", natural)):
                log_mel = model.log_mel(waveform)[0].T
                board.speech(step, f"recording {index} {name}", waveform[0], rate_hz, log_mel)
    return _shown(_mean(rows), board, step)


@torch.inference_mode()
def acoustic_report(
    model: AcousticModel,
    corpus: VoiceCorpus,
    sampling: SamplingConfig | None = None,
    board: SoundBoard | None = None,
    step: int = 0,
) -> Report:
    """Errors of the frames made from tokens, always with the same noise.

    `mel_l1_mean` and `mel_l1_drawn` without and with the flow, `variance_ratio` of drawn to natural log-mel,
    `f0_error` as the mean relative error where both are voiced, `voicing_error` as a share of frames.
    """
    drawing, source, rows = sampling or SamplingConfig(), torch.Generator().manual_seed(0), []
    for index, recording in enumerate(corpus.recordings()):
        assert recording.codes is not None
        noise = torch.randn(recording.frames.mel.shape, generator=source)
        natural, codes, noise = on_device((recording.frames, recording.codes, noise), _device(model))
        mean, drawn = (model.sample(codes, noise, how) for how in (SamplingConfig(steps=0), drawing))
        rows.append(_acoustic_errors(natural, mean, drawn))
        if board and index < NUM_SHOWN:
            for name, frames in (("drawn", drawn), ("natural", natural)):
                board.mel(step, f"recording {index} {name}", frames.mel[0], MelConfig.vocoder())
    return _shown(_mean(rows), board, step)


def _acoustic_errors(natural: VoiceFrames, mean: VoiceFrames, drawn: VoiceFrames) -> Mapping[str, torch.Tensor]:
    both = (natural.voiced * mean.voiced).bool()
    error = 2 ** (mean.octaves - natural.octaves)[both].abs() - 1
    return {
        "mel_l1_mean": (mean.mel - natural.mel).abs().mean(),
        "mel_l1_drawn": (drawn.mel - natural.mel).abs().mean(),
        "variance_ratio": drawn.mel.var() / natural.mel.var(),
        "f0_error": error.mean() if both.any() else torch.zeros(()),
        "voicing_error": (natural.voiced != mean.voiced).float().mean(),
    }


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _shown(report: Report, board: SoundBoard | None, step: int) -> Report:
    if board:
        board.numbers(step, report)
    return report


def _held_out(config: GeneratorTrainConfig | AcousticTrainConfig) -> VoiceSelection:
    return VoiceSelection(config.speech.manifest, config.speech.role, config.held_out)


def _mean(rows: Iterable[Mapping[str, torch.Tensor]]) -> Report:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(float(value))
    return {name: sum(column) / len(column) for name, column in values.items()}


def _finish(
    model: Generator | AcousticModel,
    config: GeneratorTrainConfig | AcousticTrainConfig,
    report: Report,
    board: SoundBoard | None,
) -> Report:
    if board:
        board.close()
    if not platform.Replicas.join().is_first:
        return {}
    save_config(config, config.output / "config.yaml")
    (config.output / "report.json").write_text(json.dumps(report, indent=1))
    save_network(model, config.output / "model.pt")  # last: a directory with a model is complete
    return report
