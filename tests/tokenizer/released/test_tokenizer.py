"""The released tokenizer as a whole, on a folder of its layout with an ONNX graph exported from torch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_aqaa.audio.io import load_waveform, save_waveform
from megatron_aqaa.ops.index import interleave_codes
from megatron_aqaa.tokenizer.centroids import save_centroids
from megatron_aqaa.tokenizer.open import is_released, open_tokenizer, tokenizer_files
from megatron_aqaa.tokenizer.released.semantic import ReleasedSemantic
from megatron_aqaa.tokenizer.released.tokenizer import CENTROIDS, GRAPH, ReleasedTokenizer, _whole_groups
from megatron_aqaa.tokenizer.speech import PIECE_SAMPLES
from megatron_aqaa.vocabulary import Vocabulary
from tests.tokenizer.released.files import FOLDER, SMALL, SemanticGraph, export_graph, write_released_files

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released_files(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def tokenizer(files: Path) -> ReleasedTokenizer:
    return ReleasedTokenizer.load(files)


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def test_the_graph_gives_what_the_module_gave(tokenizer: ReleasedTokenizer, files: Path) -> None:
    torch.manual_seed(7)
    module, path = SemanticGraph(4), files / "other.onnx"
    export_graph(module, path)
    ours, waveform = ReleasedSemantic(path), noise(32_000)
    expected = module(ours.mel(waveform[None]), torch.tensor([200]))[0]
    assert torch.equal(ours.codes(waveform), expected.long())
    assert len(set(expected.tolist())) > 20


def test_long_recordings_are_cut_into_pieces(tokenizer: ReleasedTokenizer) -> None:
    waveform = noise(480_000 + 400)  # the rest is below 480 samples: dropped
    codes = tokenizer.semantic.codes(waveform)
    assert len(codes) == 750
    assert torch.equal(codes, tokenizer.semantic.codes(waveform[:480_000]))
    longer = tokenizer.semantic.codes(noise(480_000 + 16_000))
    assert torch.equal(longer[750:], tokenizer.semantic.codes(noise(496_000)[480_000:]))


def test_graph_of_50_hz_is_recognised(tmp_path: Path) -> None:
    torch.manual_seed(1)
    export_graph(SemanticGraph(2), tmp_path / GRAPH)
    with pytest.raises(ValueError, match=r"100 codes for 2.0 s; expected 50 .*50 Hz tokenizer.*same name"):
        ReleasedSemantic(tmp_path / GRAPH).codes(noise(32_000))


def test_groups_and_ids(tokenizer: ReleasedTokenizer) -> None:
    waveform = noise(40_000)
    codes = tokenizer.encode(waveform)
    prepared = waveform / waveform.abs().max().clamp(min=0.01) * 0.999
    linguistic, semantic = tokenizer.linguistic.codes([prepared])[0], tokenizer.semantic.codes(prepared)
    assert (len(linguistic), len(semantic)) == (42, 63)
    np.testing.assert_array_equal(codes.linguistic, linguistic[:42])
    np.testing.assert_array_equal(codes.semantic, semantic[:63])
    ids = tokenizer.token_ids(codes)
    assert ids[0] == 65536 + linguistic[0] and ids[2] == 65536 + 1024 + semantic[0]
    assert len(ids) == 105 and len(set(linguistic.tolist())) > 5
    np.testing.assert_array_equal(tokenizer.codes(ids).semantic, codes.semantic)


def test_loudness_and_neighbours_do_not_matter(tokenizer: ReleasedTokenizer) -> None:
    waveforms = [noise(n, n) for n in (1200, 20_000, 33_333)]
    for waveform, codes in zip(waveforms, tokenizer.encode_batch(waveforms), strict=True):
        alone = tokenizer.encode(waveform * 0.5)
        np.testing.assert_array_equal(alone.linguistic, codes.linguistic)
        np.testing.assert_array_equal(alone.semantic, codes.semantic)


def test_a_file_read_in_pieces_gives_the_codes_of_the_whole(tokenizer: ReleasedTokenizer, tmp_path: Path) -> None:
    save_waveform(noise(PIECE_SAMPLES + 55_555), tmp_path / "long.wav")
    pieces = tokenizer.encode_file(tmp_path / "long.wav")
    whole = tokenizer.encode(load_waveform(tmp_path / "long.wav"))
    np.testing.assert_array_equal(pieces.linguistic, whole.linguistic)
    np.testing.assert_array_equal(pieces.semantic, whole.semantic)
    assert len(whole.semantic) == 3 * 279


def released_groups(linguistic: list[int], semantic: list[int]) -> list[int]:
    """The released rule, as a loop."""
    ids: list[int] = []
    while len(linguistic) >= 2 and len(semantic) >= 3:
        ids += [65536 + c for c in linguistic[:2]] + [65536 + 1024 + c for c in semantic[:3]]
        linguistic, semantic = linguistic[2:], semantic[3:]
    return ids


def test_interleaving_at_every_length() -> None:
    random = np.random.default_rng(0)
    for first in range(201):
        for second in {0, 1, 2, 3, first, 3 * first // 2, max(0, 3 * first // 2 - 1), 200, int(random.integers(201))}:
            linguistic = torch.from_numpy(random.integers(1024, size=first))
            semantic = torch.from_numpy(random.integers(4096, size=second))
            codes = _whole_groups(linguistic, semantic)
            ids = interleave_codes(*codes, linguistic_start=65536, semantic_start=65536 + 1024)
            assert ids.tolist() == released_groups(linguistic.tolist(), semantic.tolist())


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (torch.zeros(959), "at least 960"),
        (torch.zeros(2, 4000), "expected mono"),
        (torch.full((4000,), torch.nan), "NaN or infinite"),
    ],
)
def test_unusable_audio_is_refused(tokenizer: ReleasedTokenizer, bad: torch.Tensor, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        tokenizer.encode(bad)


def test_folder_is_recognised_by_its_files(files: Path, tmp_path: Path) -> None:
    assert is_released(files) and not is_released(tmp_path)
    assert isinstance(open_tokenizer(files), ReleasedTokenizer)


def test_files_that_tokens_depend_on(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path / "copy")
    with pytest.raises(ValueError, match="vocabulary.yaml: no such file"):  # before the work, not after it
        tokenizer_files(tmp_path / "copy")
    layout = Vocabulary.for_text(100)
    layout.save(tmp_path / "copy/vocabulary.yaml")
    names = {path.name for path in tokenizer_files(tmp_path / "copy")}
    assert names == {"vocabulary.yaml", CENTROIDS, GRAPH, "config.yaml", "model.pt", "am.mvn"}
    assert open_tokenizer(tmp_path / "copy").vocabulary == layout


@pytest.mark.parametrize(
    ("name", "what"),
    [(CENTROIDS, "no such file"), (GRAPH, "no such file"), (f"{FOLDER}/am.mvn", "expected one folder below it")],
)
def test_missing_files_are_named(files: Path, tmp_path: Path, name: str, what: str) -> None:
    shutil.copytree(files, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(ValueError, match=what):
        open_tokenizer(tmp_path / "copy")


def test_codes_beyond_the_codebook_are_refused(tmp_path: Path) -> None:
    export_graph(BeyondTheCodebook(4), tmp_path / GRAPH)
    with pytest.raises(ValueError, match=r"gave codes 4\d+ … \d+; expected 0 … 4095"):
        ReleasedSemantic(tmp_path / GRAPH).codes(noise(32_000))


class BeyondTheCodebook(SemanticGraph):
    def forward(self, mel: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        return super().forward(mel, length) + 4096


def test_providers(files: Path) -> None:
    import onnxruntime

    assert ReleasedSemantic(files / GRAPH, "cpu").session.get_providers() == ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ValueError, match="cannot run on cuda, only with .*CPUExecutionProvider.*use provider cpu"):
            ReleasedSemantic(files / GRAPH, "cuda")


def test_centroids_of_another_number(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path / "copy")
    save_centroids(torch.randn(1000, SMALL.output_size), tmp_path / "copy" / CENTROIDS)
    with pytest.raises(ValueError, match="1000 and 4096 codes do not fit the vocabulary's 1024 and 4096"):
        open_tokenizer(tmp_path / "copy")


def test_what_is_no_graph_or_another(tmp_path: Path) -> None:
    (tmp_path / GRAPH).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a graph that onnxruntime can run"):
        ReleasedSemantic(tmp_path / GRAPH)
    torch.onnx.export(torch.nn.Linear(4, 4), (torch.zeros(1, 4),), str(tmp_path / "linear.onnx"), verbose=False)
    with pytest.raises(ValueError, match="expected a spectrogram"):
        ReleasedSemantic(tmp_path / "linear.onnx")


def test_what_released_codes_do_not_tell(tokenizer: ReleasedTokenizer) -> None:
    with pytest.raises(ValueError, match="leave training.code_vectors out"):
        tokenizer.code_vectors()
    with pytest.raises(ValueError, match="does not tell the pitch"):
        tokenizer.pitch_hz(np.zeros(3, np.int64))
