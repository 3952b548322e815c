"""Shards of tokenizing: any order, any number, again and again; merged they are the run of one process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_aqaa.data.audio_tokens import Tokenization, TokenizeConfig, tokenize_manifest
from tests.tokenizer.tiny import write_corpus, write_tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TokenizeConfig:
    """Twenty recordings, two of them bad, tokenized by one process in blocks of three."""
    directory = tmp_path_factory.mktemp("inputs")
    manifest = write_corpus(directory / "speech", 20)
    (directory / "speech/wav/4.wav").unlink()
    (directory / "speech/wav/11.wav").write_bytes(b"RIFF but not audio")
    config = TokenizeConfig(manifest, write_tokenizer(directory), directory / "whole", 0, lines_per_block=3)
    assert tokenize_manifest(config) == 2
    return config


def files(directory: Path) -> dict[str, bytes]:
    return {
        name: (directory / name).read_bytes() for name in ("audio.bin", "audio.idx", "report.json", "rejects.jsonl")
    }


def blocks(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (directory / "blocks").glob("*.npz")}


def test_shards_in_any_order_merge_to_the_bytes_of_one_process(inputs: TokenizeConfig, tmp_path: Path) -> None:
    config = replace(inputs, output=tmp_path)
    for number in (2, 0, 3, 1):
        assert tokenize_manifest(replace(config, shard=f"{number}/4")) == 0
        assert not (tmp_path / "audio.idx").exists()
    made = blocks(tmp_path)
    assert len(made) == 7
    tokenize_manifest(replace(config, shard=2, num_shards=4))  # again: nothing is made anew
    assert tokenize_manifest(replace(config, merge=True)) == 2
    assert blocks(tmp_path) == made
    assert files(tmp_path) == files(inputs.output)


def test_a_shard_sees_to_its_own_recordings(inputs: TokenizeConfig, tmp_path: Path) -> None:
    config = replace(inputs, output=tmp_path)
    counts = [Tokenization(replace(config, shard=number, num_shards=4)).num_recordings for number in range(4)]
    assert counts == [3 + 3, 3 + 3, 3 + 2, 3]
    assert Tokenization(replace(config, shard="7/9")).num_recordings == 0  # more shards than blocks


def test_missing_shards_are_named(inputs: TokenizeConfig, tmp_path: Path) -> None:
    config = replace(inputs, output=tmp_path)
    tokenize_manifest(replace(config, shard="1/4"))
    (tmp_path / "blocks/00000003.npz").unlink()
    tokenize_manifest(replace(config, shard="2/4"))
    with pytest.raises(ValueError, match=r"4 of 7 blocks .* of shards 0, 1, 3 of 4: run those again \(shard=0/4\)"):
        tokenize_manifest(replace(config, merge=True, num_shards=4))
    with pytest.raises(ValueError, match=r"\(numbers 0, 1, 3, 4\); with num_shards=… it is told"):
        tokenize_manifest(replace(config, merge=True))
    assert not (tmp_path / "audio.idx").exists()
    seen: list[int] = []
    tokenize_manifest(config, seen.append)  # without merge: what is missing is made here
    assert seen[0] == 3 + 3 + 2 and files(tmp_path) == files(inputs.output)


def test_shards_of_other_settings_are_refused(inputs: TokenizeConfig, tmp_path: Path) -> None:
    config = replace(inputs, output=tmp_path)
    tokenize_manifest(replace(config, shard="0/4"))
    with pytest.raises(ValueError, match=r"other settings \(batch_size 32 → 4\)"):
        tokenize_manifest(replace(config, shard="1/4", batch_size=4))
    with pytest.raises(ValueError, match=r"\(max_duration_s 14400.0 → 60.0\)"):
        tokenize_manifest(replace(config, shard="1/4", max_duration_s=60.0))
    note = tmp_path / "blocks/inputs.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "resampler": "another 3 LQ"}))
    with pytest.raises(ValueError, match=r"resampler another 3 LQ → soxr"):
        tokenize_manifest(replace(config, shard="1/4"))


def test_a_damaged_block_is_named(inputs: TokenizeConfig, tmp_path: Path) -> None:
    config = replace(inputs, output=tmp_path)
    tokenize_manifest(config)
    (tmp_path / "blocks/00000006.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"00000006.npz: not a block of tokens .* delete it"):
        tokenize_manifest(replace(config, merge=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"merge": True, "shard": "1/4"}, "merge writes the data set of all shards"),
        ({"lines_per_block": 0}, "lines_per_block and batch_size must be at least 1"),
        ({"max_duration_s": 0.0}, "max_duration_s = 0.0: must be above 0"),
        ({"shard": 4, "num_shards": 4}, "shard = 4: must lie in 0 … 3"),
    ],
)
def test_wrong_settings(inputs: TokenizeConfig, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(inputs, **settings)
