from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_aqaa.tokenizer import dual_codebook
from megatron_aqaa.tokenizer.centroids import save_centroids
from megatron_aqaa.tokenizer.dual_codebook import DualCodebookTokenizer
from tests.tokenizer.tiny import speech, write_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> DualCodebookTokenizer:
    return DualCodebookTokenizer.load(directory)


@pytest.mark.parametrize(("num_samples", "groups"), [(960, 1), (1920, 1), (1921, 2), (16000, 9)])
def test_any_length_gives_whole_groups(tokenizer: DualCodebookTokenizer, num_samples: int, groups: int) -> None:
    samples, _ = speech(seed=1, num_groups=9)
    codes = tokenizer.encode(samples[:num_samples])
    assert (len(codes.linguistic), len(codes.semantic)) == (2 * groups, 3 * groups)
    assert codes.linguistic.min() >= 0 and codes.linguistic.max() < 1024
    assert codes.semantic.min() >= 0 and codes.semantic.max() < 4096


@pytest.mark.parametrize("bad", [np.zeros(0), np.zeros(900), np.zeros((2, 4000)), np.full(4000, np.nan)])
def test_unusable_audio_is_refused(tokenizer: DualCodebookTokenizer, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="waveform"):
        tokenizer.encode(bad)


def test_a_batch_gives_what_each_gives_alone(tokenizer: DualCodebookTokenizer) -> None:
    waveforms = [speech(seed, num_groups)[0] for seed, num_groups in enumerate((3, 9, 1, 5))]
    for waveform, together in zip(waveforms, tokenizer.encode_batch(waveforms), strict=True):
        alone = tokenizer.encode(waveform)
        assert np.array_equal(together.linguistic, alone.linguistic)
        assert np.array_equal(together.semantic, alone.semantic)


def test_loudness_does_not_matter(tokenizer: DualCodebookTokenizer) -> None:
    samples, _ = speech(seed=3, num_groups=8)
    loud, soft = tokenizer.encode(samples), tokenizer.encode(samples / 8)
    assert (loud.linguistic == soft.linguistic).mean() > 0.9  # not all: rounding


def test_token_ids_and_codes_are_inverse(tokenizer: DualCodebookTokenizer) -> None:
    codes = tokenizer.encode(speech(seed=2, num_groups=6)[0])
    token_ids = tokenizer.token_ids(codes)
    modality = tokenizer.vocabulary.modality(token_ids).reshape(-1, 5)
    assert (modality == [1, 1, 2, 2, 2]).all() and len(modality) == 6
    assert token_ids[0] == tokenizer.vocabulary.linguistic_start + codes.linguistic[0]
    again = tokenizer.codes(token_ids)
    assert np.array_equal(again.linguistic, codes.linguistic) and np.array_equal(again.semantic, codes.semantic)
    with pytest.raises(ValueError, match="multiple of 5"):
        tokenizer.codes(token_ids[1:])


def test_long_recordings_are_cut_into_independent_pieces(
    tokenizer: DualCodebookTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, _ = speech(seed=4, num_groups=10)
    fbank = tokenizer.features(samples)
    monkeypatch.setattr(dual_codebook, "PIECE_FRAMES", 4 * 12)
    (codes,) = tokenizer.encode_features([fbank])
    pieces = tokenizer.encode_features([fbank[:48], fbank[48:96], fbank[96:]])
    assert np.array_equal(codes.linguistic, np.concatenate([piece.linguistic for piece in pieces]))
    assert np.array_equal(codes.semantic, np.concatenate([piece.semantic for piece in pieces]))


def test_code_vectors_and_pitch(tokenizer: DualCodebookTokenizer) -> None:
    vectors = tokenizer.code_vectors()
    assert vectors.linguistic.shape == (1024, 32) and vectors.semantic.shape == (4096, 32)
    torch.testing.assert_close(vectors.semantic[77], tokenizer.semantic_encoder.quantizer.embed(torch.tensor(77)))
    pitch_hz = tokenizer.pitch_hz(tokenizer.encode(speech(seed=2, num_groups=6)[0]).semantic)
    assert pitch_hz.shape == (36,) and (pitch_hz > 0).all()


def test_damaged_directories_are_told(directory: Path, tmp_path: Path) -> None:
    files = ("vocabulary.yaml", "linguistic.pt", "linguistic_codebook.npy", "semantic.pt")
    for missing in files:
        copy = tmp_path / missing.replace(".", "_")
        copy.mkdir()
        for name in files:
            if name != missing:
                (copy / name).write_bytes((directory / name).read_bytes())
        with pytest.raises(ValueError, match=f"{missing}: no such"):
            DualCodebookTokenizer.load(copy)
        (copy / missing).write_bytes(b"cut off")
        with pytest.raises(ValueError, match=missing):
            DualCodebookTokenizer.load(copy)


def test_a_codebook_of_another_size_is_refused(directory: Path, tmp_path: Path) -> None:
    for name in ("vocabulary.yaml", "linguistic.pt", "semantic.pt"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    save_centroids(torch.randn(512, 32), tmp_path / "linguistic_codebook.npy")
    with pytest.raises(ValueError, match="512 and 4096 codes do not fit the vocabulary's 1024 and 4096"):
        DualCodebookTokenizer.load(tmp_path)
