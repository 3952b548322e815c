"""How good a speech tokenizer is on held-out voices: unit error, what its codes say, pitch from codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_aqaa.tokenizer.centroids import nearest_centroid
from megatron_aqaa.tokenizer.codebook_report import CodebookReport, CodeCounts
from megatron_aqaa.tokenizer.edit_distance import edit_distance
from megatron_aqaa.tokenizer.feature_store import FeatureStore
from megatron_aqaa.tokenizer.layers import valid_frames
from megatron_aqaa.tokenizer.linguistic import FRAMES_PER_CODE as FRAMES_PER_LINGUISTIC
from megatron_aqaa.tokenizer.linguistic import LinguisticEncoder
from megatron_aqaa.tokenizer.semantic import FRAMES_PER_CODE as FRAMES_PER_SEMANTIC
from megatron_aqaa.tokenizer.semantic import SemanticEncoder
from megatron_aqaa.training.speech_models.supervision import Supervision
from megatron_aqaa.training.speech_models.tokenizer_steps import SpeechBatch, evaluation_batches

Scores = dict[str, float]


class Scored(NamedTuple):
    """Scores by name, and the codebook in detail."""

    scores: Scores
    report: CodebookReport


class ScoredSpeech(NamedTuple):
    """What is scored.

    Attributes:
        store: features of both sets.
        supervision: what the encoder was trained to recognise.
        trained: utterances that decide which phone a code stands for, and count its use.
        held_out: utterances that are judged.
    """

    store: FeatureStore
    supervision: Supervision
    trained: Sequence[int]
    held_out: Sequence[int]

    def batches(self, utterances: Sequence[int]) -> list[SpeechBatch]:
        """All of one set."""
        return list(evaluation_batches(self.store, self.supervision, utterances))


@torch.inference_mode()
def linguistic_scores(model: LinguisticEncoder, centroids: Tensor, speech: ScoredSpeech) -> Scored:
    """Scores of an encoder and its centroids [K, D]; `…_error_of_codes` is through the codebook, `…_error` before it.

    `distortion` is the squared distance of a held-out state to its centroid, as a share of the states' variance.
    """
    errors, quantized = UnitErrors(speech.supervision), UnitErrors(speech.supervision)
    codes, spread = CodeCounts(len(centroids), FRAMES_PER_LINGUISTIC, speech.store.phones), _Spread()
    for utterances, judged in ((speech.trained, False), (speech.held_out, True)):
        for batch in speech.batches(utterances):
            hidden = model(batch.fbank, batch.lengths)
            nearest = nearest_centroid(hidden, centroids)
            inside = valid_frames(batch.lengths // FRAMES_PER_LINGUISTIC, hidden.shape[1])
            codes.add(nearest, inside, batch.phones, judged)
            if judged:
                errors.add(model.unit_logits(hidden).argmax(-1), batch)
                quantized.add(model.unit_logits(centroids[nearest]).argmax(-1), batch)
                spread.add(hidden[inside], centroids[nearest][inside])
    name, report = speech.supervision.error_name, codes.report()
    scores = {name: errors.rate, f"{name}_of_codes": quantized.rate, "distortion": spread.distortion}
    return Scored(scores | report.scores(), report)


@torch.inference_mode()
def semantic_scores(model: SemanticEncoder, speech: ScoredSpeech) -> Scored:
    """Scores of a semantic encoder, all of what its codes alone say.

    `mel_error` is the mean difference of its mel head to the normalised features, `pitch_error_semitones` the mean over
    voiced frames.
    """
    errors = UnitErrors(speech.supervision)
    codes = CodeCounts(len(model.quantizer), FRAMES_PER_SEMANTIC, speech.store.phones)
    semitones: list[Tensor] = []
    mel_errors: list[Tensor] = []
    for utterances, judged in ((speech.trained, False), (speech.held_out, True)):
        for batch in speech.batches(utterances):
            batch_codes = model.codes(batch.fbank, batch.lengths)
            inside = valid_frames(batch.lengths // FRAMES_PER_SEMANTIC, batch_codes.shape[1])
            codes.add(batch_codes, inside, batch.phones, judged)
            if judged:
                said = model.predict(model.quantizer.embed(batch_codes), batch.lengths)
                errors.add(said.unit_logits.argmax(-1), batch)
                voiced, frames = batch.pitch.isfinite(), valid_frames(batch.lengths, batch.fbank.shape[1])
                semitones.append(12 * (said.pitch - batch.pitch)[voiced].abs())
                mel_errors.append((said.mel - model.feature_norm(batch.fbank, frames))[frames].abs().mean(-1))
    report = codes.report()
    scores = {
        speech.supervision.error_name: errors.rate,
        "pitch_error_semitones": float(torch.cat(semitones).mean()),
        "mel_error": float(torch.cat(mel_errors).mean()),
    }
    return Scored(scores | report.scores(), report)


class UnitErrors:
    """Edit distance between spoken and recognised sequences of units, over the number of spoken units."""

    def __init__(self, supervision: Supervision) -> None:
        self.supervision = supervision
        self.errors = self.total = 0

    def add(self, recognised: Tensor, batch: SpeechBatch) -> None:
        """Count a batch: [B, F] unit indices of 10 ms."""
        rows = zip(recognised, batch.lengths.tolist(), batch.targets, batch.num_targets.tolist(), strict=True)
        for frames, length, targets, count in rows:
            heard, spoken = self.supervision.heard(frames[:length].tolist()), targets[:count].tolist()
            self.errors += edit_distance(heard, spoken)
            self.total += len(spoken)

    @property
    def rate(self) -> float:
        """Errors per spoken unit."""
        return self.errors / max(1, self.total)


class _Spread:
    """Sums for the share of the states' variance that centroids leave."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares, self.distances = 0, torch.zeros(()), 0.0, 0.0

    def add(self, states: Tensor, nearest: Tensor) -> None:
        self.count += len(states)
        self.sum = self.sum + states.double().sum(0)
        self.squares += float(states.double().square().sum())
        self.distances += float((states - nearest).double().square().sum())

    @property
    def distortion(self) -> float:
        variance = self.squares - float(self.sum.square().sum()) / max(1, self.count)
        return self.distances / max(variance, 1e-12)
