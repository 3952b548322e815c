"""A tokenizer that was trained here, in the files of the released one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_aqaa.network_file import save_network
from megatron_aqaa.tokenizer.centroids import nearest_centroid, save_centroids
from megatron_aqaa.tokenizer.features import prepare_waveform
from megatron_aqaa.tokenizer.front_ends import FRONT_ENDS
from megatron_aqaa.tokenizer.linguistic import LinguisticConfig, LinguisticEncoder
from megatron_aqaa.tokenizer.open import open_tokenizer, tokenizer_files
from megatron_aqaa.tokenizer.quantizers import FsqConfig, QuantizerKind
from megatron_aqaa.tokenizer.released.export import ExportConfig, export_tokenizer
from megatron_aqaa.tokenizer.released.tokenizer import ReleasedTokenizer
from megatron_aqaa.tokenizer.semantic import SemanticConfig, SemanticEncoder
from megatron_aqaa.tokenizer.whisper import WhisperConfig
from tests.tokenizer.released.files import SMALL
from tests.tokenizer.tiny import PHONES, speech, write_text_model, write_tokenizer

WAVEFORM = prepare_waveform(torch.from_numpy(speech(3, 20)[0]))
LINGUISTIC = LinguisticConfig(kind="sanm", sanm=SMALL)


def semantic_config(quantizer: QuantizerKind = "fsq", **settings: object) -> SemanticConfig:
    return SemanticConfig(kind="whisper", whisper=WhisperConfig(32, 2, 2), quantizer=quantizer, **settings)


def write_trained(directory: Path, config: SemanticConfig) -> tuple[LinguisticEncoder, torch.Tensor, SemanticEncoder]:
    """A tokenizer directory with random weights whose codes vary, and features that need their normalisation."""
    torch.manual_seed(0)
    write_text_model(directory)
    linguistic, semantic = LinguisticEncoder(LINGUISTIC, PHONES).eval(), SemanticEncoder(config, PHONES).eval()
    for encoder in (linguistic, semantic):
        heard = FRONT_ENDS[encoder.config.front_end]()(WAVEFORM)
        encoder.feature_norm.mean.copy_(heard.mean(0))
        encoder.feature_norm.deviation.copy_(heard.std(0))
    semantic.quantizer.project_in.weight.data *= 6  # or few codes occur
    centroids = torch.randn(1024, SMALL.output_size)
    save_network(linguistic, directory / "linguistic.pt", units=PHONES)
    save_network(semantic, directory / "semantic.pt", units=PHONES)
    save_centroids(centroids, directory / "linguistic_codebook.npy")
    return linguistic, centroids, semantic


@pytest.mark.parametrize("quantizer", ["fsq", "vq_ema"])
def test_the_adapter_gives_the_codes_of_the_trained_encoders(tmp_path: Path, quantizer: QuantizerKind) -> None:
    linguistic, centroids, semantic = write_trained(tmp_path / "trained", semantic_config(quantizer))
    agreement = export_tokenizer(ExportConfig(tmp_path / "trained", tmp_path / "released"))
    assert min(agreement.linguistic, agreement.semantic) >= 0.99
    tokenizer = open_tokenizer(tmp_path / "released")
    assert isinstance(tokenizer, ReleasedTokenizer)
    frames = torch.tensor([len(WAVEFORM) // 160])
    with torch.inference_mode():
        kaldi, whisper = (FRONT_ENDS[kind]()(WAVEFORM)[None] for kind in ("kaldi", "whisper"))
        expected = nearest_centroid(linguistic(kaldi, frames), centroids)[0], semantic.codes(whisper, frames)[0]
    codes = tokenizer.encode_features([WAVEFORM])[0]
    for got, own in zip((codes.linguistic, codes.semantic), expected, strict=True):
        assert len(own.unique()) > 10
        assert (torch.from_numpy(got) == own).double().mean() >= 0.98
    vectors = tokenizer.code_vectors()
    torch.testing.assert_close(vectors.semantic, semantic.quantizer.embed(torch.arange(4096)).detach())
    torch.testing.assert_close(vectors.linguistic, centroids)
    assert {path.name for path in tokenizer_files(tmp_path / "released")} >= {"vocabulary.yaml", "am.mvn"}


def test_kinds_without_such_files_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "trained")
    with pytest.raises(ValueError, match="convnext and convnext; the released files hold sanm and whisper"):
        export_tokenizer(ExportConfig(tmp_path / "trained", tmp_path / "released"))


def test_a_codebook_of_another_size_is_refused(tmp_path: Path) -> None:
    write_trained(tmp_path / "trained", semantic_config(fsq=FsqConfig(num_values=5)))
    with pytest.raises(ValueError, match="1024 semantic codes; the released files hold 4096"):
        export_tokenizer(ExportConfig(tmp_path / "trained", tmp_path / "released"))
