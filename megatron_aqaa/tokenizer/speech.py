"""What every tokenizer of speech offers, whatever its files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from megatron_aqaa.ops.index import Codes, deinterleave_codes, interleave_codes
from megatron_aqaa.vocabulary import Vocabulary


class CodeVectors(NamedTuple):
    """Vectors that stand for the codes, to start embedding rows from.

    Attributes:
        linguistic: [1024, D] centroids.
        semantic: [4096, D'] embedded codes.
    """

    linguistic: torch.Tensor
    semantic: torch.Tensor


class SpeechTokenizer(ABC):
    """Encodes mono 16 kHz speech; the one place where audio is prepared for the language model.

    Args:
        vocabulary: layout of the merged ids.
        sizes: of the linguistic and of the semantic codebook.

    Raises:
        ValueError: codebooks that do not fit the vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, sizes: tuple[int, int]) -> None:
        if sizes != (vocabulary.linguistic_size, vocabulary.semantic_size):
            raise ValueError(
                f"codebooks of {sizes[0]} and {sizes[1]} codes do not fit the vocabulary's "
                f"{vocabulary.linguistic_size} and {vocabulary.semantic_size}"
            )
        self.vocabulary = vocabulary

    @abstractmethod
    def features(self, waveform: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
        """What `encode_features` takes of [N] samples at 16 kHz; its length tells recordings of like length.

        Raises:
            ValueError: empty, shorter than 60 ms, not mono, or not finite.
        """

    @abstractmethod
    def encode_features(self, features: Sequence[torch.Tensor]) -> list[Codes]:
        """Codes of what `features` made; cheapest where they are of about one length."""

    def encode(self, waveform: npt.ArrayLike | torch.Tensor) -> Codes:
        """[N] samples at 16 kHz → linguistic codes [2g] and semantic codes [3g].

        Raises:
            ValueError: empty, shorter than 60 ms, not mono, or not finite.
        """
        return self.encode_batch([waveform])[0]

    def encode_batch(self, waveforms: Sequence[npt.ArrayLike | torch.Tensor]) -> list[Codes]:
        """Codes of several waveforms; cheapest where they are of about one length. See `encode`."""
        return self.encode_features([self.features(waveform) for waveform in waveforms])

    def token_ids(self, codes: Codes) -> npt.NDArray[np.int64]:
        """Merged ids [5g] in groups `[L L S S S]`."""
        v = self.vocabulary
        starts = {"linguistic_start": v.linguistic_start, "semantic_start": v.semantic_start}
        return interleave_codes(codes.linguistic, codes.semantic, **starts)

    def codes(self, token_ids: npt.ArrayLike) -> Codes:
        """The codes in merged ids [5g]; the inverse of `token_ids`.

        Raises:
            ValueError: an id breaks the group grammar.
        """
        v = self.vocabulary
        return deinterleave_codes(token_ids, linguistic_start=v.linguistic_start, semantic_start=v.semantic_start)

    @abstractmethod
    def pitch_hz(self, semantic_codes: npt.ArrayLike) -> torch.Tensor:
        """Pitch that the semantic codes [3g] carry: [6g] Hz at 50 Hz, a guess where the sound is unvoiced."""

    @abstractmethod
    def code_vectors(self) -> CodeVectors:
        """Vectors of all codes: an LM whose embedding rows start from them learns much sooner than from noise."""
