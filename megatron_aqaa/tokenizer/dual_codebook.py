"""Speech → dual-codebook tokens: preparation, both encoders, the codebook and the merged ids, behind one object.

A tokenizer directory holds::

    text.model, vocabulary.yaml                 text pieces and the id layout
    linguistic.pt, linguistic_codebook.npy      encoder, and [1024, D] float32 centroids
    semantic.pt                                 encoder with its quantizer
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from megatron_aqaa.network_file import load_network
from megatron_aqaa.ops.index import Codes, deinterleave_codes, interleave_codes
from megatron_aqaa.tokenizer.centroids import MADE_BY, load_centroids
from megatron_aqaa.tokenizer.features import FRAMES_PER_GROUP, PITCH_REFERENCE_HZ, FilterBank, prepare_waveform
from megatron_aqaa.tokenizer.linguistic import LinguisticConfig, LinguisticEncoder, nearest_centroid
from megatron_aqaa.tokenizer.semantic import FRAMES_PER_CODE, SemanticConfig, SemanticEncoder
from megatron_aqaa.vocabulary import Vocabulary

# Long recordings are cut into independent pieces of 30 s, as in the released tokenizer: attention over ten minutes
# would need gigabytes, and the encoders never saw such lengths.
PIECE_FRAMES = 30 * 100


class CodeVectors(NamedTuple):
    """Vectors that stand for the codes, to start embedding rows from.

    Attributes:
        linguistic: [1024, D] centroids.
        semantic: [4096, D'] embedded codes.
    """

    linguistic: torch.Tensor
    semantic: torch.Tensor


class DualCodebookTokenizer:
    """Encodes mono 16 kHz speech; the one place where audio is prepared for the language model."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        linguistic_encoder: LinguisticEncoder,
        centroids: torch.Tensor,
        semantic_encoder: SemanticEncoder,
    ) -> None:
        sizes = (len(centroids), len(semantic_encoder.quantizer))
        if sizes != (vocabulary.linguistic_size, vocabulary.semantic_size):
            raise ValueError(
                f"codebooks of {sizes[0]} and {sizes[1]} codes do not fit the vocabulary's "
                f"{vocabulary.linguistic_size} and {vocabulary.semantic_size}"
            )
        self.vocabulary = vocabulary
        self.linguistic_encoder = linguistic_encoder.eval()
        self.centroids = centroids
        self.semantic_encoder = semantic_encoder.eval()
        self.filter_bank = FilterBank()

    @classmethod
    def load(cls, directory: str | Path) -> DualCodebookTokenizer:
        """Read a tokenizer directory.

        Raises:
            ValueError: a file is missing or damaged, or the parts do not fit each other.
        """
        directory = Path(directory)
        return cls(
            Vocabulary.load(directory / "vocabulary.yaml"),
            load_network(LinguisticEncoder, LinguisticConfig, directory / "linguistic.pt", MADE_BY),
            load_centroids(directory / "linguistic_codebook.npy"),
            load_network(SemanticEncoder, SemanticConfig, directory / "semantic.pt", MADE_BY),
        )

    def encode(self, waveform: npt.ArrayLike | torch.Tensor) -> Codes:
        """[N] samples at 16 kHz → linguistic codes [2g] and semantic codes [3g], g = ceil(N / 1920) groups.

        Raises:
            ValueError: empty, shorter than 60 ms, not mono, or not finite.
        """
        return self.encode_batch([waveform])[0]

    def encode_batch(self, waveforms: Sequence[npt.ArrayLike | torch.Tensor]) -> list[Codes]:
        """Codes of several waveforms; cheapest where they are of about one length. See `encode`."""
        return self.encode_features([self.features(waveform) for waveform in waveforms])

    def features(self, waveform: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
        """Log-mel energies [F, M] of [N] samples at 16 kHz, prepared as the encoders expect it. See `encode`."""
        return self.filter_bank(prepare_waveform(torch.as_tensor(waveform)))

    @torch.inference_mode()
    def encode_features(self, features: Sequence[torch.Tensor]) -> list[Codes]:
        """Codes of log-mel energies [F, M] that `features` made."""
        pieces = [piece for fbank in features for piece in fbank.split(PIECE_FRAMES)]
        lengths = torch.tensor([len(piece) for piece in pieces])
        fbank = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True).float()
        codes = self._codes(fbank, lengths)
        groups = iter(zip(*(c.numpy() for c in codes), (lengths // FRAMES_PER_GROUP).tolist(), strict=True))
        return [_join([next(groups) for _ in fbank.split(PIECE_FRAMES)]) for fbank in features]

    def _codes(self, fbank: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.linguistic_encoder(fbank, lengths)
        return nearest_centroid(hidden, self.centroids), self.semantic_encoder.codes(fbank, lengths)

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

    @torch.inference_mode()
    def pitch_hz(self, semantic_codes: npt.ArrayLike) -> torch.Tensor:
        """Pitch that the semantic codes [3g] carry: [6g] Hz at 50 Hz, a guess where the sound is unvoiced."""
        embedded = self.semantic_encoder.quantizer.embed(torch.as_tensor(semantic_codes))[None]
        frames = torch.tensor([embedded.shape[1] * FRAMES_PER_CODE])
        return PITCH_REFERENCE_HZ * 2 ** self.semantic_encoder.predict(embedded, frames).pitch[0]

    @torch.inference_mode()
    def code_vectors(self) -> CodeVectors:
        """Vectors of all codes: an LM whose embedding rows start from them learns much sooner than from noise."""
        codes = torch.arange(self.vocabulary.semantic_size)
        return CodeVectors(self.centroids.clone(), self.semantic_encoder.quantizer.embed(codes))


def _join(pieces: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]]) -> Codes:
    linguistic_codes = [codes[: 2 * groups] for codes, _, groups in pieces]
    semantic_codes = [codes[: 3 * groups] for _, codes, groups in pieces]
    return Codes(np.concatenate(linguistic_codes), np.concatenate(semantic_codes))
