"""Export of a tokenizer that was trained here to the files of the released one, and the check that nothing was lost."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from megatron_aqaa.network_file import load_network
from megatron_aqaa.tokenizer.centroids import MADE_BY, load_centroids, nearest_centroid, save_centroids
from megatron_aqaa.tokenizer.features import SAMPLES_PER_GROUP, prepare_waveform
from megatron_aqaa.tokenizer.front_ends import FRONT_ENDS
from megatron_aqaa.tokenizer.linguistic import STACKED_FRAMES, LinguisticConfig, LinguisticEncoder, SanmBody
from megatron_aqaa.tokenizer.released.paraformer import Normalization, Paraformer, save_paraformer
from megatron_aqaa.tokenizer.released.semantic import CODEBOOK_SIZE
from megatron_aqaa.tokenizer.released.tokenizer import CENTROIDS, GRAPH, SEMANTIC_VECTORS, ReleasedTokenizer
from megatron_aqaa.tokenizer.semantic import SemanticConfig, SemanticEncoder

PARAFORMER = "paraformer"
LEAST_AGREEMENT = 0.99
"""Share of equal codes below which an export is given up: codes flip where two are equally near, by rounding."""


@dataclass(frozen=True)
class ExportConfig:
    """What is exported.

    Attributes:
        tokenizer: directory of a tokenizer with the encoders `sanm` and `whisper`.
        output: receives the files that docs/tokenizer.md lists.
    """

    tokenizer: Path
    output: Path


@dataclass(frozen=True)
class Agreement:
    """Share of equal codes of the trained tokenizer and its export, on noise that swells and fades."""

    linguistic: float
    semantic: float


class SemanticGraph(nn.Module):
    """What the ONNX file computes: log-mel [1, 128, T] and its length [1] int32 → codes [1, T / 4] int32."""

    def __init__(self, encoder: SemanticEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, mel: Tensor, length: Tensor) -> Tensor:
        """See the class."""
        return self.encoder.codes(mel.transpose(1, 2), length.long()).int()


def export_tokenizer(config: ExportConfig) -> Agreement:
    """Write the released files and compare codes.

    Raises:
        ValueError: the encoders are of kinds that have no such files, the codebooks of other sizes, a file or onnx is
            missing, or the export gives other codes.
    """
    source, output = config.tokenizer, config.output
    linguistic = load_network(LinguisticEncoder, LinguisticConfig, source / "linguistic.pt", MADE_BY)
    semantic = load_network(SemanticEncoder, SemanticConfig, source / "semantic.pt", MADE_BY)
    centroids = load_centroids(source / "linguistic_codebook.npy")
    _check(linguistic, semantic, source)
    assert isinstance(linguistic.body, SanmBody)
    output.mkdir(parents=True, exist_ok=True)
    save_paraformer(output / PARAFORMER, Paraformer(linguistic.body.sanm, _normalization(linguistic)))
    save_centroids(centroids, output / CENTROIDS)
    export_graph(SemanticGraph(semantic), output / GRAPH)
    with torch.inference_mode():
        np.save(output / SEMANTIC_VECTORS, semantic.quantizer.embed(torch.arange(CODEBOOK_SIZE)).float().numpy())
    for name in ("vocabulary.yaml", "text.model"):
        if (source / name).is_file():
            shutil.copyfile(source / name, output / name)
    agreement = _agreement(linguistic, centroids, semantic, ReleasedTokenizer.load(output, "cpu"))
    if min(agreement.linguistic, agreement.semantic) < LEAST_AGREEMENT:
        raise ValueError(f"{output}: gives other codes than {source} ({agreement}); the files must not be used")
    return agreement


def export_graph(module: nn.Module, path: Path) -> None:
    """Write a module of mel [1, 128, T] and length [1] int32 as ONNX, for any T from 4 to 4000.

    Raises:
        ValueError: onnx is not installed.
    """
    inputs = (torch.randn(1, 128, 200), torch.tensor([200], dtype=torch.int32))
    shapes = {"mel": {2: torch.export.Dim("frames", min=4, max=4000)}, "length": None}
    try:
        torch.onnx.export(module.eval(), inputs, str(path), dynamic_shapes=shapes, external_data=False, verbose=False)
    except ModuleNotFoundError as error:
        remedy = "pip install 'megatron-aqaa[released-tokenizer]'"
        raise ValueError(f"{path}: writing it needs {error.name}, which is not installed: {remedy}") from None


def _check(linguistic: LinguisticEncoder, semantic: SemanticEncoder, source: Path) -> None:
    kinds = linguistic.config.kind, semantic.config.kind
    if kinds != ("sanm", "whisper"):
        raise ValueError(
            f"{source}: its encoders are {kinds[0]} and {kinds[1]}; the released files hold sanm and whisper, see "
            f"examples/tokenizer"
        )
    if len(semantic.quantizer) != CODEBOOK_SIZE:
        raise ValueError(f"{source}: {len(semantic.quantizer)} semantic codes; the released files hold {CODEBOOK_SIZE}")


def _normalization(linguistic: LinguisticEncoder) -> Normalization:
    norm = linguistic.feature_norm
    return Normalization((-norm.mean).repeat(STACKED_FRAMES), (1 / norm.deviation).repeat(STACKED_FRAMES))


@torch.inference_mode()
def _agreement(
    linguistic: LinguisticEncoder, centroids: Tensor, semantic: SemanticEncoder, exported: ReleasedTokenizer
) -> Agreement:
    samples = torch.randn(50 * SAMPLES_PER_GROUP, generator=torch.Generator().manual_seed(0))
    waveform = prepare_waveform(samples * torch.linspace(0, 6.28, len(samples)).sin())
    kaldi, whisper = (FRONT_ENDS[kind]()(waveform)[None] for kind in ("kaldi", "whisper"))
    frames = torch.tensor([kaldi.shape[1]])
    ours = nearest_centroid(linguistic(kaldi, frames), centroids)[0], semantic.codes(whisper, frames)[0]
    theirs = exported.encode_features([waveform])[0]
    pairs = zip(ours, (theirs.linguistic, theirs.semantic), strict=True)
    return Agreement(*(float((own == torch.from_numpy(other)).double().mean()) for own, other in pairs))
