"""The released dual-codebook tokenizer behind the interface of every speech tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from megatron_aqaa.audio.io import normalize_peak
from megatron_aqaa.ops.index import Codes
from megatron_aqaa.tokenizer.centroids import load_centroids
from megatron_aqaa.tokenizer.released.linguistic import ReleasedLinguistic
from megatron_aqaa.tokenizer.released.semantic import CODEBOOK_SIZE, Provider, ReleasedSemantic
from megatron_aqaa.tokenizer.speech import CodeVectors, SpeechTokenizer
from megatron_aqaa.vocabulary import LINGUISTIC_PER_GROUP, SEMANTIC_PER_GROUP, Vocabulary

CENTROIDS = "linguistic_tokenizer.npy"
GRAPH = "speech_tokenizer_v1.onnx"
SEMANTIC_VECTORS = "semantic_vectors.npy"  # of our own exports: what the codes stand for inside the graph
_SHORTEST = 960  # samples


def paraformer_folder(directory: Path) -> Path:
    """The folder below `directory` that holds Paraformer: the one with an `am.mvn`.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = sorted(path.parent for path in directory.rglob("am.mvn"))
    if len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise ValueError(f"{directory}: expected one folder below it with Paraformer's am.mvn, found {names}")
    return found[0]


class ReleasedTokenizer(SpeechTokenizer):
    """Codes exactly as the released program makes them (stepfun-ai/Step-Audio: `tokenizer.py`).

    A recording is brought to a peak of 0.999. Both encoders hear it whole; the codes are cut to
    `min(linguistic // 2, semantic // 3)` groups.

    Args:
        vocabulary: layout of the merged ids.
        linguistic: 16.67 Hz.
        semantic: 25 Hz.
        semantic_vectors: [4096, D] vectors of the semantic codes, where they are known.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        linguistic: ReleasedLinguistic,
        semantic: ReleasedSemantic,
        semantic_vectors: torch.Tensor | None = None,
    ) -> None:
        super().__init__(vocabulary, (len(linguistic.centroids), CODEBOOK_SIZE))
        self.linguistic, self.semantic, self.semantic_vectors = linguistic, semantic, semantic_vectors

    @classmethod
    def load(cls, directory: str | Path, provider: Provider = "auto") -> ReleasedTokenizer:
        """Read a folder as released: `linguistic_tokenizer.npy`, `speech_tokenizer_v1.onnx`, and Paraformer's below it.

        A `vocabulary.yaml` beside them tells the ids; without one they are those of the released models. Exports of
        tokenizers that were trained here also have `semantic_vectors.npy`.

        Raises:
            ValueError: a file is missing or damaged, or the parts do not fit each other.
        """
        directory = Path(directory)
        layout = directory / "vocabulary.yaml"
        return cls(
            Vocabulary.load(layout) if layout.exists() else Vocabulary(),
            ReleasedLinguistic.load(paraformer_folder(directory), directory / CENTROIDS),
            ReleasedSemantic(directory / GRAPH, provider),
            load_centroids(vectors) if (vectors := directory / SEMANTIC_VECTORS).exists() else None,
        )

    def features(self, waveform: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
        """The prepared waveform [N] itself: the two encoders hear different features of it."""
        samples = torch.as_tensor(waveform)
        if samples.dim() != 1 or len(samples) < _SHORTEST:
            raise ValueError(
                f"waveform has shape {list(samples.shape)}; expected mono [N], at least {_SHORTEST} (60 ms)"
            )
        if not torch.isfinite(samples).all():
            raise ValueError("waveform holds NaN or infinite samples; the recording is damaged, export it again")
        return normalize_peak(samples.float())

    def encode_features(self, features: Sequence[torch.Tensor]) -> list[Codes]:
        """Codes of prepared waveforms; the linguistic half in one batch, the graph one at a time."""
        linguistic = self.linguistic.codes(features)
        semantic = [self.semantic.codes(waveform) for waveform in features]
        return [_whole_groups(*halves) for halves in zip(linguistic, semantic, strict=True)]

    def encode_pieces(self, pieces: Iterable[torch.Tensor]) -> Iterator[Codes]:
        """See `SpeechTokenizer.encode_pieces`."""
        stream, total = self.linguistic.stream(), 0
        halves: list[list[torch.Tensor]] = [[], []]
        for piece in pieces:
            total += len(piece)
            halves[0].append(stream.feed(piece))
            halves[1].append(self.semantic.codes(piece))
        if total < _SHORTEST:
            raise ValueError(f"waveform has {total} samples; speech needs at least {_SHORTEST} (60 ms at 16 kHz)")
        halves[0].append(stream.feed(torch.zeros(0), final=True))
        yield _whole_groups(*(torch.cat(codes) for codes in halves))

    def pitch_hz(self, semantic_codes: npt.ArrayLike) -> torch.Tensor:
        """Not known of the released codes."""
        raise ValueError("the released semantic tokenizer does not tell the pitch of its codes")

    def code_vectors(self) -> CodeVectors:
        """Not known of the published semantic codes: they are inside the graph."""
        if self.semantic_vectors is None:
            raise ValueError(
                "the vectors of the released semantic codes are inside its graph; leave training.code_vectors out, and "
                "start the audio rows from the text rows"
            )
        return CodeVectors(self.linguistic.centroids.clone(), self.semantic_vectors.clone())


def _whole_groups(linguistic: torch.Tensor, semantic: torch.Tensor) -> Codes:
    groups = min(len(linguistic) // LINGUISTIC_PER_GROUP, len(semantic) // SEMANTIC_PER_GROUP)
    cut = linguistic[: groups * LINGUISTIC_PER_GROUP], semantic[: groups * SEMANTIC_PER_GROUP]
    return Codes(*(np.ascontiguousarray(codes.numpy()) for codes in cut))
