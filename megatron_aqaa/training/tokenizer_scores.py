"""How good a speech tokenizer is on held-out voices: phone error, what its codes say, pitch from codes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from megatron_aqaa.tokenizer.codebook import codebook_use, majority_phones, phone_accuracy
from megatron_aqaa.tokenizer.feature_store import FeatureStore
from megatron_aqaa.tokenizer.linguistic import FRAMES_PER_CODE as FRAMES_PER_LINGUISTIC
from megatron_aqaa.tokenizer.linguistic import LinguisticEncoder, nearest_centroid
from megatron_aqaa.tokenizer.semantic import FRAMES_PER_CODE as FRAMES_PER_SEMANTIC
from megatron_aqaa.tokenizer.semantic import SemanticEncoder
from megatron_aqaa.training.tokenizer_steps import SpeechBatch, evaluation_batches

Scores = dict[str, float]


@torch.inference_mode()
def linguistic_scores(
    model: LinguisticEncoder, centroids: torch.Tensor, store: FeatureStore, trained: list[int], held_out: list[int]
) -> Scores:
    """Scores of an encoder and its centroids; `phone_error_of_codes` is through the codebook, `phone_error` before it.

    Args:
        model: in evaluation mode.
        centroids: [K, D].
        store: features of both sets.
        trained: utterances that decide which phone a code stands for, and count its use.
        held_out: utterances that are judged.
    """
    errors, quantized = PhoneErrors(model.phones), PhoneErrors(model.phones)
    codes = CodePhones(len(centroids), FRAMES_PER_LINGUISTIC)
    for utterances, judged in ((trained, False), (held_out, True)):
        for batch in evaluation_batches(store, utterances):
            hidden = model(batch.fbank, batch.lengths)
            nearest = nearest_centroid(hidden, centroids)
            codes.add(nearest, batch, judged)
            if judged:
                errors.add(model.phone_logits(hidden).argmax(-1), batch)
                quantized.add(model.phone_logits(centroids[nearest]).argmax(-1), batch)
    return {"phone_error": errors.rate, "phone_error_of_codes": quantized.rate, **codes.scores()}


@torch.inference_mode()
def semantic_scores(model: SemanticEncoder, store: FeatureStore, trained: list[int], held_out: list[int]) -> Scores:
    """Scores of a semantic encoder; `pitch_error_semitones` is the mean over voiced frames. See `linguistic_scores`."""
    errors, codes = PhoneErrors(model.phones), CodePhones(len(model.quantizer), FRAMES_PER_SEMANTIC)
    semitones: list[torch.Tensor] = []
    for utterances, judged in ((trained, False), (held_out, True)):
        for batch in evaluation_batches(store, utterances):
            batch_codes = model.codes(batch.fbank, batch.lengths)
            codes.add(batch_codes, batch, judged)
            if judged:
                said = model.predict(model.quantizer.embed(batch_codes), batch.lengths)
                errors.add(said.phone_logits.argmax(-1), batch)
                semitones.append(12 * (said.pitch - batch.pitch)[batch.pitch.isfinite()].abs())
    pitch_error = float(torch.cat(semitones).mean())
    return {"phone_error": errors.rate, "pitch_error_semitones": pitch_error, **codes.scores()}


class PhoneErrors:
    """Edit distance between spoken and recognised phone sequences, over the number of spoken phones."""

    def __init__(self, names: Sequence[str]) -> None:
        # espeak's pauses; a recogniser is not judged by them
        self.silent = {i for i, name in enumerate(names) if name.startswith("_") or name == ";"}
        self.errors = self.total = 0

    def add(self, recognised: torch.Tensor, batch: SpeechBatch) -> None:
        """Count a batch: [B, F] phone indices of 10 ms."""
        for heard, spoken, length in zip(recognised, batch.phones, batch.lengths.tolist(), strict=True):
            reference = self.sequence(spoken[:length].tolist())
            self.errors += edit_distance(self.sequence(heard[:length].tolist()), reference)
            self.total += len(reference)

    def sequence(self, frames: Sequence[int]) -> list[int]:
        """Phones of a frame sequence: runs of at least 20 ms, without silence, neighbours merged."""
        runs = [phone for phone, run in groupby(frames) if phone not in self.silent and len(list(run)) >= 2]
        return [phone for phone, _ in groupby(runs)]

    @property
    def rate(self) -> float:
        """Errors per spoken phone."""
        return self.errors / max(1, self.total)


class CodePhones:
    """Which phone each code stands for in one set of utterances, and how often that is right in another."""

    def __init__(self, size: int, frames_per_code: int) -> None:
        self.size, self.frames_per_code = size, frames_per_code
        self.pairs: dict[bool, list[np.ndarray]] = {False: [], True: []}

    def add(self, codes: torch.Tensor, batch: SpeechBatch, judged: bool) -> None:
        """Note codes [B, F / n] and the phone in the middle of each."""
        middle = batch.phones[:, self.frames_per_code // 2 :: self.frames_per_code]
        inside = middle >= 0
        self.pairs[judged].append(torch.stack([codes[inside], middle[inside]]).numpy())

    def scores(self) -> Scores:
        """Codes used and perplexity in the first set, phone accuracy of the codes in the judged one."""
        (codes, phones), judged = (np.concatenate(self.pairs[key], axis=1) for key in (False, True))
        use = codebook_use(codes, self.size)
        accuracy = phone_accuracy(judged[0], judged[1], majority_phones(codes, phones, self.size))
        return {"codes_used": use.used, "perplexity": use.perplexity, "code_phone_accuracy": accuracy}


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Insertions, deletions and substitutions that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]
