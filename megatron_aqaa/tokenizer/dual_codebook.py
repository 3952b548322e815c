"""Speech → dual-codebook tokens: preparation, both encoders, the codebook and the merged ids, behind one object.

A tokenizer directory holds::

    text.model, vocabulary.yaml                 text pieces and the id layout
    linguistic.pt, linguistic_codebook.npy      encoder, and [1024, D] float32 centroids
    semantic.pt                                 encoder with its quantizer
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from megatron_aqaa.network_file import load_network
from megatron_aqaa.ops.index import Codes
from megatron_aqaa.tokenizer.centroids import MADE_BY, load_centroids, nearest_centroid
from megatron_aqaa.tokenizer.features import (
    FRAMES_PER_GROUP,
    PITCH_REFERENCE_HZ,
    SAMPLES_PER_GROUP,
    FilterBank,
    prepare_waveform,
)
from megatron_aqaa.tokenizer.linguistic import LinguisticConfig, LinguisticEncoder
from megatron_aqaa.tokenizer.semantic import FRAMES_PER_CODE, SemanticConfig, SemanticEncoder
from megatron_aqaa.tokenizer.speech import PIECE_SAMPLES, CodeVectors, SpeechTokenizer
from megatron_aqaa.vocabulary import Vocabulary

PIECE_FRAMES = PIECE_SAMPLES // 160


class DualCodebookTokenizer(SpeechTokenizer):
    """The tokenizer that tools/train_tokenizer.py trains."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        linguistic_encoder: LinguisticEncoder,
        centroids: torch.Tensor,
        semantic_encoder: SemanticEncoder,
    ) -> None:
        super().__init__(vocabulary, (len(centroids), len(semantic_encoder.quantizer)))
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

    @torch.inference_mode()
    def encode_pieces(self, pieces: Iterable[torch.Tensor]) -> Iterator[Codes]:
        """See `SpeechTokenizer.encode_pieces`."""
        for stretch in self._with_margins(_in_groups(pieces)):
            yield self.encode_features([self.filter_bank.of_padded(stretch)])[0]

    def _with_margins(self, pieces: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Each piece with the samples around it that its outermost frames hear; the ends are reflected."""
        margin = self.filter_bank.mel.margin
        before, piece = None, None
        for following in pieces:
            if piece is not None:
                left = piece[1 : margin + 1].flip(0) if before is None else before
                yield torch.cat((left, piece, following[:margin]))
                before = piece[-margin:]
            piece = following
        assert piece is not None
        left = piece[1 : margin + 1].flip(0) if before is None else before
        yield torch.cat((left, piece, piece[-margin - 1 : -1].flip(0)))

    def _codes(self, fbank: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.linguistic_encoder(fbank, lengths)
        return nearest_centroid(hidden, self.centroids), self.semantic_encoder.codes(fbank, lengths)

    @torch.inference_mode()
    def pitch_hz(self, semantic_codes: npt.ArrayLike) -> torch.Tensor:
        """Pitch that the semantic codes [3g] carry: [6g] Hz at 50 Hz, a guess where the sound is unvoiced."""
        embedded = self.semantic_encoder.quantizer.embed(torch.as_tensor(semantic_codes))[None]
        frames = torch.tensor([embedded.shape[1] * FRAMES_PER_CODE])
        return PITCH_REFERENCE_HZ * 2 ** self.semantic_encoder.predict(embedded, frames).pitch[0]

    @torch.inference_mode()
    def code_vectors(self) -> CodeVectors:
        """See `SpeechTokenizer.code_vectors`."""
        codes = torch.arange(self.vocabulary.semantic_size)
        return CodeVectors(self.centroids.clone(), self.semantic_encoder.quantizer.embed(codes))


def _in_groups(pieces: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The last piece is filled up with silence to whole groups, as `prepare_waveform` does it."""
    total = 0
    for piece in pieces:
        total += len(piece)
        if total < SAMPLES_PER_GROUP // 2:
            prepare_waveform(piece)  # says what is wrong
        yield functional.pad(piece, (0, -len(piece) % SAMPLES_PER_GROUP))


def _join(pieces: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]]) -> Codes:
    linguistic_codes = [codes[: 2 * groups] for codes, _, groups in pieces]
    semantic_codes = [codes[: 3 * groups] for _, codes, groups in pieces]
    return Codes(np.concatenate(linguistic_codes), np.concatenate(semantic_codes))
