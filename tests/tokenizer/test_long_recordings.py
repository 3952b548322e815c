"""Recordings of any length, piece by piece: the same codes as of the whole, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from megatron_aqaa.audio.io import load_waveform
from megatron_aqaa.tokenizer.dual_codebook import DualCodebookTokenizer
from megatron_aqaa.tokenizer.speech import PIECE_SAMPLES, pieces_of
from tests.tokenizer.tiny import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> DualCodebookTokenizer:
    return DualCodebookTokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def write_noise(path: Path, num_samples: int, rate_hz: int = 16000) -> Path:
    loudness = 0.05 + 0.3 * np.abs(np.sin(np.arange(num_samples) / rate_hz))
    soundfile.write(path, loudness * np.random.default_rng(0).uniform(-1, 1, num_samples), rate_hz)
    return path


@pytest.mark.parametrize("num_samples", [960, 5000, 480_000, 480_001, 480_177, 960_000, 1_000_000])
def test_pieces_give_what_the_whole_gives(tokenizer: DualCodebookTokenizer, tmp_path: Path, num_samples: int) -> None:
    path = write_noise(tmp_path / "x.wav", num_samples)
    whole, pieces = tokenizer.encode(load_waveform(path)), tokenizer.encode_file(path)
    assert len(whole.semantic) == -(-num_samples // 1920) * 3
    np.testing.assert_array_equal(pieces.linguistic, whole.linguistic)
    np.testing.assert_array_equal(pieces.semantic, whole.semantic)


def test_another_rate(tokenizer: DualCodebookTokenizer, tmp_path: Path) -> None:
    path = write_noise(tmp_path / "x.flac", 1_700_000, 24_000)
    np.testing.assert_array_equal(tokenizer.encode_file(path).semantic, tokenizer.encode(load_waveform(path)).semantic)


def test_pieces_of_a_file(tmp_path: Path) -> None:
    path = write_noise(tmp_path / "x.wav", 2 * PIECE_SAMPLES + 5)
    pieces = list(pieces_of(path, 0.5))
    assert [len(piece) for piece in pieces] == [PIECE_SAMPLES, PIECE_SAMPLES, 5]
    torch.testing.assert_close(torch.cat(pieces), load_waveform(path) / 0.5 * 0.999)


def test_too_short(tokenizer: DualCodebookTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="speech needs at least 960"):
        tokenizer.encode_file(write_noise(tmp_path / "x.wav", 959))


def test_memory_does_not_grow(tokenizer: DualCodebookTokenizer) -> None:
    """Pieces are taken as they are needed: while one is encoded, only the next has been made."""
    made = 0

    def pieces() -> Iterator[torch.Tensor]:
        nonlocal made
        for _ in range(20):
            made += 1
            yield 0.1 * torch.randn(PIECE_SAMPLES)

    for number, codes in enumerate(tokenizer.encode_pieces(pieces()), start=1):
        assert made <= number + 1
        assert len(codes.linguistic) == 500
    assert number == 20
