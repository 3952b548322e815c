"""The training jobs of the full-size vocoder: flow model (tokens → mel) and HiFT generator (mel → waveform).

Each writes `model.pt`, its configuration, the log, and `report.json` with its error on held-out recordings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megatron_aqaa import platform
from megatron_aqaa.audio.mel import MelSpectrogram
from megatron_aqaa.config import save_config
from megatron_aqaa.data.audio_loading.batch_plan import Batching
from megatron_aqaa.network_file import save_network
from megatron_aqaa.training.speech_models.adversarial_fit import fit_adversarially
from megatron_aqaa.training.speech_models.adversarial_state import AdversarialFitConfig
from megatron_aqaa.training.speech_models.ahead import Ahead
from megatron_aqaa.training.speech_models.fit import FitConfig, fit
from megatron_aqaa.training.speech_models.hift_steps import hift_adversary
from megatron_aqaa.training.speech_models.recording_reader import RecordingReader, write_rejects
from megatron_aqaa.training.speech_models.sound_board import NUM_SHOWN, SoundBoard, open_board
from megatron_aqaa.training.speech_models.speech_batches import SoundCrops, TokenizedRecordings
from megatron_aqaa.training.speech_models.voice_corpus import VoiceSelection
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.adversarial_losses import AdversarialWeights
from megatron_aqaa.vocoder.cosyvoice.flow_loss import flow_losses
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig, FlowModel, TokenBatch
from megatron_aqaa.vocoder.cosyvoice.hift import HiftConfig, HiftGenerator
from megatron_aqaa.vocoder.discriminators import DiscriminatorConfig, Discriminators
from megatron_aqaa.vocoder.released import load_released_flow, load_released_hift

Report = dict[str, float]


@dataclass(frozen=True)
class HiftTrainConfig:
    """One run of the HiFT generator against its discriminators.

    Attributes:
        speech: whose recordings it learns from.
        output: receives all files.
        fit: schedule and optimizers.
        held_out: split of the recordings it is measured on.
        num_held_out: at most so many of them.
        model: sizes.
        discriminators: their sizes.
        weights: of the losses.
        batch_size: crops of a step.
        crop_length: samples of a crop.
        start_from: a released `hift.pt` to go on from.
        tensorboard: show validations under `<output>/tensorboard`.
    """

    speech: VoiceSelection
    output: Path
    fit: AdversarialFitConfig
    held_out: str = "validation"
    num_held_out: int = 20
    model: HiftConfig = field(default_factory=HiftConfig)
    discriminators: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    weights: AdversarialWeights = field(default_factory=AdversarialWeights)
    batch_size: int = 16
    crop_length: int = 24576
    start_from: Path | None = None
    tensorboard: bool = False


@dataclass(frozen=True)
class FlowTrainConfig:
    """One run of the flow model.

    Attributes:
        speech: whose recordings it learns from.
        tokens: prefix of the token data set, sequence i for line i of the manifest.
        vocabulary: layout of the token ids: the tokenizer's `vocabulary.yaml`.
        output: receives all files.
        fit: schedule and optimizer.
        held_out: split of the recordings it is measured on.
        num_held_out: at most so many of them.
        model: sizes.
        batching: which recordings go together.
        steps: Euler steps of the measurement.
        tensorboard: show validations under `<output>/tensorboard`.
        start_from: a released `flow.pt` to go on from.
        own: tensors that are not taken from it, such as `input_embedding.weight`.
    """

    speech: VoiceSelection
    tokens: Path
    vocabulary: Path
    output: Path
    fit: FitConfig
    held_out: str = "validation"
    num_held_out: int = 20
    model: FlowConfig = field(default_factory=FlowConfig)
    batching: Batching = field(default_factory=Batching)
    steps: int = 10
    tensorboard: bool = False
    start_from: Path | None = None
    own: tuple[str, ...] = ()


def train_hift(config: HiftTrainConfig) -> Report:
    """Train, save, and measure on held-out recordings."""
    torch.manual_seed(config.fit.seed)
    torch.set_num_threads(config.fit.num_threads)
    mel = config.model.mel
    crops = SoundCrops(config.speech, mel, config.batch_size, config.crop_length, config.fit.seed)
    held_out = SoundCrops(_held_out(config), mel, 1, config.crop_length)
    model = load_released_hift(config.start_from, config.model) if config.start_from else HiftGenerator(config.model)
    whole_band = dataclasses.replace(mel, f_max_hz=mel.sample_rate_hz / 2)
    adversary = hift_adversary(config.weights, [MelSpectrogram(whole_band).to(platform.device())])
    board = open_board(config.tensorboard, config.output)

    def validation(generator: HiftGenerator, step: int) -> Report:
        return hift_report(generator, held_out, config.num_held_out, board, step)

    judges = Discriminators(config.discriminators)
    with _rejects_named(config, crops.reader, held_out.reader):
        with contextlib.closing(Ahead(crops)) as batches:
            fit_adversarially(model, judges, batches, adversary, config.fit, config.output, "HiFT", validation)
        return _finish(model, config, hift_report(model, held_out, config.num_held_out), board)


def train_flow(config: FlowTrainConfig) -> Report:
    """Train, save, and measure on held-out recordings."""
    torch.manual_seed(config.fit.seed)
    torch.set_num_threads(config.fit.num_threads)
    vocabulary = Vocabulary.load(config.vocabulary)
    _check_vocabulary(config, vocabulary)
    recordings = TokenizedRecordings(config.speech, config.tokens, vocabulary, config.model, config.batching)
    held_out = TokenizedRecordings(_held_out(config), config.tokens, vocabulary, config.model, config.batching)
    model = (
        load_released_flow(config.start_from, config.model, config.own)
        if config.start_from
        else FlowModel(config.model)
    )
    board = open_board(config.tensorboard, config.output)

    def validation(model: FlowModel, step: int) -> Report:
        return flow_report(model, held_out, config.num_held_out, config.steps, board, step)

    with _rejects_named(config, recordings.reader, held_out.reader):
        with contextlib.closing(Ahead(recordings)) as batches:
            fit(model, batches, flow_losses, config.fit, config.output, "flow model", validation)
        if platform.Replicas.join().is_first:
            vocabulary.save(config.output / "vocabulary.yaml")
        return _finish(model, config, flow_report(model, held_out, config.num_held_out, config.steps), board)


@torch.no_grad()
def hift_report(
    model: HiftGenerator, corpus: SoundCrops, limit: int, board: SoundBoard | None = None, step: int = 0
) -> Report:
    """Errors of sound made from natural mel: log-mel L1, and F0 in Hz where voiced; means over recordings."""
    log_mel, rows = MelSpectrogram(model.config.mel), []
    for index, natural in enumerate(corpus.wholes(limit)):
        spoken = model(natural.mel.to(model.window.device))
        waveform, f0_hz = spoken.waveform.cpu(), spoken.f0_hz.cpu()
        generated = log_mel(waveform).transpose(1, 2)
        voiced = natural.f0_hz > 0
        error = (f0_hz - natural.f0_hz)[voiced].abs().mean() if voiced.any() else torch.zeros(())
        rows.append({"mel_l1": float((generated - natural.mel).abs().mean()), "f0_error_hz": float(error)})
        if board and index < NUM_SHOWN:
            rate_hz = model.config.mel.sample_rate_hz
            board.speech(step, f"recording {index} generated", waveform[0], rate_hz, generated[0])
            board.speech(step, f"recording {index} natural", natural.waveform[0], rate_hz, natural.mel[0])
    report = _mean(rows)
    if board:
        board.numbers(step, report)
    return report


@torch.no_grad()
def flow_report(
    model: FlowModel,
    corpus: TokenizedRecordings,
    limit: int,
    steps: int,
    board: SoundBoard | None = None,
    step: int = 0,
) -> Report:
    """Errors of mel drawn from tokens, always with the same noise: L1, and the ratio of drawn to natural variance."""
    source, rows = torch.Generator().manual_seed(0), []
    device = model.encoder_proj.weight.device
    for index, spoken in enumerate(corpus.first(limit)):
        noise = torch.randn(1, *spoken.mel.shape, generator=source).to(device)
        drawn = model.sample(TokenBatch(spoken.tokens[None].to(device)), noise, steps)[0].cpu()
        error, ratio = (drawn - spoken.mel).abs().mean(), drawn.var() / spoken.mel.var()
        rows.append({"mel_l1": float(error), "variance_ratio": float(ratio)})
        if board and index < NUM_SHOWN:
            board.mel(step, f"recording {index} drawn", drawn, model.config.mel)
            board.mel(step, f"recording {index} natural", spoken.mel, model.config.mel)
    report = _mean(rows)
    if board:
        board.numbers(step, report)
    return report


def _check_vocabulary(config: FlowTrainConfig, vocabulary: Vocabulary) -> None:
    model, codes = config.model, (vocabulary.linguistic_size, vocabulary.semantic_size)
    if (model.linguistic_size, model.vocab_size - model.linguistic_size) != codes:
        raise ValueError(
            f"model.vocab_size = {model.vocab_size}, {model.linguistic_size} of them linguistic: {config.vocabulary} "
            f"has {codes[0]} linguistic and {codes[1]} semantic codes"
        )


def _held_out(config: HiftTrainConfig | FlowTrainConfig) -> VoiceSelection:
    return dataclasses.replace(config.speech, split=config.held_out)


@contextlib.contextmanager
def _rejects_named(config: HiftTrainConfig | FlowTrainConfig, *readers: RecordingReader) -> Iterator[None]:
    """However the run ends, what it set aside is written to its output."""
    try:
        yield
    finally:
        write_rejects(config.output, *readers)


def _mean(rows: Iterable[Mapping[str, float]]) -> Report:
    rows = list(rows)
    names = dict.fromkeys(itertools.chain(*rows))
    return {name: sum(row[name] for row in rows) / len(rows) for name in names}


def _finish(
    model: torch.nn.Module, config: HiftTrainConfig | FlowTrainConfig, report: Report, board: SoundBoard | None
) -> Report:
    if board:
        board.close()
    if not platform.Replicas.join().is_first:
        return {}
    save_config(config, config.output / "config.yaml")
    (config.output / "report.json").write_text(json.dumps(report, indent=1))
    save_network(model, config.output / "model.pt")  # last: a directory with a model is complete
    return report
