"""Tokenizing among damage: every bad file is named, none stops the rest, and good neighbours do not change."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_aqaa.data.audio_tokens import TokenizeConfig, tokenize_manifest
from megatron_aqaa.data.indexed import Documents
from tests.data.damaged_audio import KINDS, noise, write_damaged
from tests.tokenizer.tiny import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def write_good(directory: Path, count: int) -> list[Path]:
    paths = []
    for number in range(count):
        rate_hz, suffix = ((16000, "wav"), (96_000, "flac"), (8000, "ogg"))[number % 3]
        paths.append(directory / os.fsdecode(b"good\xe9" + f"{number}.{suffix}".encode()))
        with paths[-1].open("wb") as file:
            soundfile.write(file, noise(number, rate_hz), rate_hz, format=suffix.upper())
    return paths


def tokens(paths: list[Path], tokenizer: Path, output: Path) -> tuple[Documents, list[dict[str, object]]]:
    output.mkdir()
    lines = (json.dumps({"audio": str(path)}) + "\n" for path in paths)
    (output / "manifest.jsonl").write_text("".join(lines))
    tokenize_manifest(TokenizeConfig(output / "manifest.jsonl", tokenizer, output, num_workers=0, lines_per_block=64))
    rejects = (output / "rejects.jsonl").read_text().splitlines()
    return Documents(output / "audio"), [json.loads(line) for line in rejects]


@pytest.mark.filterwarnings("ignore:recordings at")
def test_two_hundred_damaged_files(tokenizer: Path, tmp_path: Path) -> None:
    bad, good = list(write_damaged(tmp_path)), write_good(tmp_path, 30)
    mixed = [*bad[:100], *good[:15], *bad[100:], *good[15:]]
    documents, rejects = tokens(mixed, tokenizer, tmp_path / "mixed")
    alone, none = tokens(good, tokenizer, tmp_path / "alone")

    named = {str(reject["audio"]): str(reject["reason"]) for reject in rejects}
    assert set(named) == {str(path) for path in bad} and not none
    for path, reason in named.items():
        assert path in reason and len(reason) > len(path) + 10
    assert len(documents) == 230 and len(alone) == 30
    of_good = [documents[mixed.index(path)].token_ids for path in good]
    for number, token_ids in enumerate(of_good):
        np.testing.assert_array_equal(token_ids, alone[number].token_ids)
        assert len(token_ids) == 45  # a second: nine groups


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ten_hours_of_silence", "10.0 h; at most 4 h are taken"),
        ("pipe", "not a regular file"),
        ("loop", "cannot be opened"),
        ("dangling", "no such file"),
        ("not_a_number", "NaN or infinite"),
        ("too_short", "speech needs at least"),
        ("cut_wav", "truncated"),
    ],
)
def test_reasons_tell_what_is_wrong(tokenizer: Path, tmp_path: Path, kind: str, words: str) -> None:
    number = [function.__name__ for function in KINDS].index(kind)
    bad = list(write_damaged(tmp_path, number + 1))[-1]
    _, rejects = tokens([bad, *write_good(tmp_path, 1)], tokenizer, tmp_path / "out")
    assert [reject["line"] for reject in rejects] == [1]
    assert words in str(rejects[0]["reason"])
