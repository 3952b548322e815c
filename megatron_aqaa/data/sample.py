"""One training sequence: documents one after the other, shifted, weighted and numbered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_aqaa.data.indexed import Document
from megatron_aqaa.vocabulary import Vocabulary

Batch = dict[str, torch.Tensor]
"""`token_ids`, `labels`, `document_ids` int64 and `loss_mask` float32, each [S], or [B, S] once batched."""

FIELDS = ("token_ids", "labels", "loss_mask", "document_ids")
PADDING_DOCUMENT = -1


@dataclass(frozen=True)
class LossWeights:
    """Weight of one target by its modality.

    Whole numbers, because Megatron counts the weights of a batch as integers; only their ratio matters.

    Attributes:
        text: Text pieces and markers.
        audio: Linguistic and semantic codes.
    """

    text: int = 1
    audio: int = 1


class SampleBuilder:
    """Fills one sequence of `sequence_length` positions.

    Position i holds a token and, as its label, the token that follows it *in the same document*; where there is none
    (the last token of a document, and padding) the label is `pad` and weighs nothing.
    """

    def __init__(self, sequence_length: int, vocabulary: Vocabulary, weights: LossWeights) -> None:
        self.vocabulary, self.weights = vocabulary, weights
        self.token_ids = np.full(sequence_length, vocabulary.pad, np.int64)
        self.labels = np.full(sequence_length, vocabulary.pad, np.int64)
        self.is_target = np.zeros(sequence_length, np.uint8)
        self.document_ids = np.full(sequence_length, PADDING_DOCUMENT, np.int64)
        self.length = self.num_documents = 0

    def add(self, document: Document, keep_last: bool = False, inputs: NDArray[np.int64] | None = None) -> None:
        """Append a document, or a stretch of one.

        Args:
            document: n tokens; they take n − 1 positions, the last one being a label only.
            keep_last: Give the last token a position too, as Megatron's endless stream of documents does.
            inputs: [n] what the model reads in place of the document's tokens; the labels stay the document's.
        """
        inputs = document.token_ids if inputs is None else inputs
        num_labels = len(inputs) - 1
        num_positions = len(inputs) if keep_last else num_labels
        if not num_positions:
            return
        start = self.length
        self.length += num_positions
        self.token_ids[start : self.length] = inputs[:num_positions]
        self.labels[start : start + num_labels] = document.token_ids[1:]
        self.is_target[start : start + num_labels] = document.loss_mask[1:]
        self.document_ids[start : self.length] = self.num_documents
        self.num_documents += 1

    def finish(self) -> Batch:
        """The sequence, each field [S]."""
        weight = np.where(self.vocabulary.is_audio(self.labels), self.weights.audio, self.weights.text)
        return {
            "token_ids": torch.from_numpy(self.token_ids),
            "labels": torch.from_numpy(self.labels),
            "loss_mask": torch.from_numpy((self.is_target * weight).astype(np.float32)),
            "document_ids": torch.from_numpy(self.document_ids),
        }


def replace_codes(
    document: Document, ratio: float, vocabulary: Vocabulary, random: np.random.Generator
) -> NDArray[np.int64]:
    """Token ids with a share `ratio` of the audio codes that are not targets replaced by others of their codebook.

    Question audio is read, never said. A model that learns from it with some codes wrong leans less on single codes
    and copes better with voices that it has not heard.
    """
    token_ids = document.token_ids.copy()
    modality = vocabulary.modality(token_ids)
    chosen = (random.random(len(token_ids)) < ratio) & (document.loss_mask == 0)
    codebooks = (
        (vocabulary.linguistic_start, vocabulary.linguistic_size),
        (vocabulary.semantic_start, vocabulary.semantic_size),
    )
    for index, (start, size) in enumerate(codebooks, start=1):
        where = chosen & (modality == index)
        token_ids[where] = start + random.integers(size, size=int(where.sum()))
    return token_ids
