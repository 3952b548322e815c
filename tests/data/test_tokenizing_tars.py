"""Tokenizing WebDataset tars where they lie: the tokens of the unpacked files, shards by tar, damage named."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_aqaa.audio.io import duration_s, load_waveform
from megatron_aqaa.audio.tar_member import TarMember
from megatron_aqaa.data.audio_tokens import TokenizeConfig, tokenize_manifest
from megatron_aqaa.data.indexed import Documents
from tests.tokenizer.tiny import speech, write_tokenizer

FORMATS = (("wav", 16000), ("flac", 44100), ("ogg", 16000), ("mp3", 24000))


def content(number: int) -> tuple[str, bytes]:
    """Name and bytes of a recording: formats and rates in turn, the ninth longer than a minute."""
    suffix, rate_hz = FORMATS[number % 4]
    samples = speech(number, 520 if number == 8 else 5 + number)[0]
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=suffix.upper())
    return f"{number:03d}.{suffix}", buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer; ten recordings in three tars, and as files with a manifest."""
    directory = tmp_path_factory.mktemp("tars")
    write_tokenizer(directory)
    (directory / "tars").mkdir()
    lines = []
    for tar, numbers in enumerate((range(4), range(4, 9), range(9, 10))):
        with tarfile.open(directory / f"tars/{tar}.tar", "w") as archive:
            for number in numbers:
                name, audio = content(number)
                (directory / name).write_bytes(audio)
                lines.append(json.dumps({"audio": name, "text": f"number {number}"}) + "\n")
                add(archive, name, audio)
                add(archive, f"{number:03d}.txt", f"number {number}".encode())
    (directory / "manifest.jsonl").write_text("".join(lines))
    return directory


@pytest.fixture(scope="module")
def whole(folder: Path) -> TokenizeConfig:
    """All tars by one process."""
    config = TokenizeConfig(folder / "tars", folder, folder / "whole", 0, lines_per_block=2)
    assert tokenize_manifest(config) == 0
    return config


def files(directory: Path) -> dict[str, bytes]:
    names = ("audio.bin", "audio.idx", "report.json", "rejects.jsonl", "manifest.jsonl")
    return {name: (directory / name).read_bytes() for name in names}


def test_members_are_read_as_files_are(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for tar in sorted((folder / "tars").iterdir()):
        with tarfile.open(tar) as archive:
            for info in archive:
                if info.name.endswith("txt"):
                    continue
                member, file = TarMember(tar, info.name, info.offset_data, info.size), folder / info.name
                assert duration_s(member) == duration_s(file)
                np.testing.assert_array_equal(load_waveform(member), load_waveform(file))
    assert len(lines) == 10


@pytest.mark.filterwarnings("ignore:recordings at")
def test_tars_give_the_tokens_of_the_unpacked_files(folder: Path, whole: TokenizeConfig, tmp_path: Path) -> None:
    unpacked = TokenizeConfig(folder / "manifest.jsonl", folder, tmp_path, 0, lines_per_block=2)
    assert tokenize_manifest(unpacked) == 0
    ours, theirs = Documents(whole.output / "audio"), Documents(tmp_path / "audio")
    assert len(ours) == len(theirs) == 10
    for number in range(10):
        np.testing.assert_array_equal(ours[number].token_ids, theirs[number].token_ids)
    lines = [json.loads(line) for line in (whole.output / "manifest.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [f"number {number}" for number in range(10)]
    assert lines[5]["audio"] == f"{folder}/tars/1.tar#005.flac"


def test_shards_of_tars_merge_to_the_bytes_of_one_process(whole: TokenizeConfig, tmp_path: Path) -> None:
    config = replace(whole, output=tmp_path)
    tokenize_manifest(replace(config, shard="1/2"))
    assert {path.name[:6] for path in (tmp_path / "blocks").glob("*.npz")} == {"000001"}, "a shard reads its own tars"
    with pytest.raises(ValueError, match=r"2 of 3 tars are not tokenized, of shards 0 of 2"):
        tokenize_manifest(replace(config, merge=True, num_shards=2))
    tokenize_manifest(replace(config, shard="0/2"))
    assert tokenize_manifest(replace(config, merge=True)) == 0
    assert files(tmp_path) == files(whole.output)


def test_damage_is_named_by_tar_and_member(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    good, flac = content(0)[1], content(1)[1]
    with tarfile.open(tmp_path / "tars/a.tar", "w") as archive:
        for name, audio in {
            "0.wav": good,
            "1.wav": good[:-9],
            "2.flac": flac[:400],
            "3.wav": b"",
            "4.mp3": b"x",
        }.items():
            add(archive, name, audio)
        add(archive, "5.json", b'{"text": "alone"}')
    cut = (tmp_path / "tars/a.tar").read_bytes()[: 512 + 200]
    (tmp_path / "tars/b.tar").write_bytes(cut)
    (tmp_path / "tars/c.tar").write_text("no tar")
    config = TokenizeConfig(tmp_path / "tars", folder, tmp_path / "out", 0)
    assert tokenize_manifest(config) == 8
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    found = {reject["audio"].removeprefix(f"{tmp_path}/tars/"): reject["reason"] for reject in rejects}
    words = {
        "a.tar#1.wav": "truncated",
        "a.tar#2.flac": "not readable as wav, flac, ogg or mp3",
        "a.tar#3.wav": "is empty (0 bytes)",
        "a.tar#4.mp3": "not readable as wav, flac, ogg or mp3",
        "a.tar#5.json": "must have one recording",
        "b.tar#0.wav": "truncated, 200 of",
        "b.tar": "damaged or cut off behind 0.wav",
        "c.tar": "not readable as an uncompressed tar",
    }
    assert list(found) == list(words)
    for name, reason in found.items():
        assert f"{tmp_path}/tars/{name}" in reason and words[name] in reason
    documents = Documents(tmp_path / "out/audio")
    assert [len(document.token_ids) for document in documents] == [25] + [1] * 8


def test_text_may_be_required(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0.wav", content(0)[1])
        add(archive, "4.wav", content(4)[1])
        add(archive, "4.json", b'{"text": " "}')
    config = TokenizeConfig(tmp_path / "a.tar", folder, tmp_path / "out", 0)
    assert tokenize_manifest(config) == 0
    with pytest.raises(ValueError, match=r"require_text False → True"):
        tokenize_manifest(replace(config, require_text=True))
    assert tokenize_manifest(replace(config, output=tmp_path / "strict", require_text=True)) == 2
    assert "0.wav: has no text" in (tmp_path / "strict/rejects.jsonl").read_text()
