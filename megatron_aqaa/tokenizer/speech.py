"""What every tokenizer of speech offers, whatever its files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from megatron_aqaa.audio.io import read_blocks
from megatron_aqaa.audio.tar_member import TarMember
from megatron_aqaa.ops.index import Codes, deinterleave_codes, interleave_codes
from megatron_aqaa.vocabulary import Vocabulary

# Encoders hear independent pieces of 30 s, as the released semantic tokenizer does: attention over ten minutes would
# need gigabytes, and they never saw such lengths.
PIECE_SAMPLES = 30 * 16_000


def pieces_of(path: str | Path | TarMember, peak: float) -> Iterator[torch.Tensor]:
    """A file in pieces of `PIECE_SAMPLES` at 16 kHz, scaled as `normalize_peak` scales what has this peak."""
    kept = torch.zeros(0)
    for block in read_blocks(path):
        kept = torch.cat((kept, block / max(peak, 0.01) * 0.999))
        while len(kept) > PIECE_SAMPLES:  # the last piece is not empty
            yield kept[:PIECE_SAMPLES]
            kept = kept[PIECE_SAMPLES:]
    yield kept


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

    def encode_file(self, path: str | Path | TarMember) -> Codes:
        """Codes of an audio file of any length, in memory that does not grow with it; it is read twice, peak first.

        Raises:
            AudioError: the file cannot be used.
            ValueError: shorter than 60 ms.
        """
        peak = max(float(block.abs().max()) for block in read_blocks(path))
        parts = list(self.encode_pieces(pieces_of(path, peak)))
        return Codes(*(np.concatenate(halves) for halves in zip(*parts, strict=True)))

    @abstractmethod
    def encode_pieces(self, pieces: Iterable[torch.Tensor]) -> Iterator[Codes]:
        """Codes piece by piece: joined, those of the whole recording.

        Args:
            pieces: a prepared recording in pieces of `PIECE_SAMPLES`, the last one shorter.

        Raises:
            ValueError: the recording is shorter than 60 ms.
        """

    def token_ids(self, codes: Codes) -> npt.NDArray[np.int64]:
        """Merged ids [5g] in groups `[L L S S S]`."""
        return interleave_codes(codes.linguistic, codes.semantic, **self.vocabulary.audio_range)

    def codes(self, token_ids: npt.ArrayLike) -> Codes:
        """The codes in merged ids [5g]; the inverse of `token_ids`.

        Raises:
            ValueError: an id breaks the group grammar.
        """
        return deinterleave_codes(token_ids, **self.vocabulary.audio_range)

    @abstractmethod
    def pitch_hz(self, semantic_codes: npt.ArrayLike) -> torch.Tensor:
        """Pitch that the semantic codes [3g] carry: [6g] Hz at 50 Hz, a guess where the sound is unvoiced."""

    @abstractmethod
    def code_vectors(self) -> CodeVectors:
        """Vectors of all codes: an LM whose embedding rows start from them learns much sooner than from noise."""
