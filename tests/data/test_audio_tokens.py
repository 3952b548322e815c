from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_aqaa.audio.io import RESAMPLER, load_waveform
from megatron_aqaa.data.audio_tokens import TokenizeConfig, tokenize_manifest
from megatron_aqaa.data.finished import record_of
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.tokenizer.dual_codebook import DualCodebookTokenizer
from tests.tokenizer.tiny import write_corpus, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def config(tmp_path: Path, tokenizer: Path, name: str = "tokens", **settings: int) -> TokenizeConfig:
    manifest = tmp_path / "speech" / "manifest.jsonl"
    if not manifest.exists():
        write_corpus(manifest.parent, 7)
    return TokenizeConfig(manifest, tokenizer, tmp_path / name, **({"num_workers": 0, "lines_per_block": 3} | settings))


def files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in ("audio.bin", "audio.idx", "report.json")}


def test_sequence_i_is_line_i(tmp_path: Path, tokenizer: Path) -> None:
    job = config(tmp_path, tokenizer)
    assert tokenize_manifest(job) == 0
    documents, encoder = Documents(job.output / "audio"), DualCodebookTokenizer.load(tokenizer)
    assert documents.lengths.tolist() == [5 * (4 + i % 5) for i in range(7)]
    for i in range(7):
        codes = encoder.encode(load_waveform(job.manifest.parent / f"wav/{i}.wav"))
        assert np.array_equal(documents[i].token_ids, encoder.token_ids(codes))


def test_report(tmp_path: Path, tokenizer: Path) -> None:
    job = config(tmp_path, tokenizer)
    tokenize_manifest(job)
    report = json.loads((job.output / "report.json").read_text())
    num_groups = sum(4 + i % 5 for i in range(7))
    assert report["num_tokens"] == 5 * num_groups and report["hours"] == pytest.approx(num_groups * 0.12 / 3600)
    for name, per_group, size in (("linguistic", 2, 1024), ("semantic", 3, 4096)):
        assert sum(report[name]["counts"]) == per_group * num_groups and len(report[name]["counts"]) == size
        assert set(report[name]["phone_accuracy"]) == {"train", "unseen_voice"}
        assert 0 < report[name]["phone_accuracy"]["train"] <= 1


def test_the_resampler_is_noted(tmp_path: Path, tokenizer: Path) -> None:
    job = config(tmp_path, tokenizer)
    tokenize_manifest(job)
    record = record_of(job.output / "audio")
    assert (record["resampler"], record["documents"], record["rejected"]) == (RESAMPLER, 7, 0)


def test_bad_recordings_are_set_aside_with_the_reason(tmp_path: Path, tokenizer: Path) -> None:
    job = config(tmp_path, tokenizer)
    good = DualCodebookTokenizer.load(tokenizer).encode(load_waveform(job.manifest.parent / "wav/2.wav"))
    (job.manifest.parent / "wav/1.wav").write_bytes(b"RIFF but not audio")
    (job.manifest.parent / "wav/4.wav").unlink()
    assert tokenize_manifest(job) == 2
    rejects = [json.loads(line) for line in (job.output / "rejects.jsonl").read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == [2, 5]
    assert "wav/1.wav" in rejects[0]["reason"] and "no such file" in rejects[1]["reason"]
    documents = Documents(job.output / "audio")
    assert documents[1].token_ids.tolist() == documents[4].token_ids.tolist() == [0]
    assert len(documents) == 7 and len(documents[2].token_ids) == 5 * len(good.semantic) // 3


def test_an_interrupted_run_ends_in_the_same_bytes(tmp_path: Path, tokenizer: Path) -> None:
    whole, job = (config(tmp_path, tokenizer, name) for name in ("whole", "resumed"))
    tokenize_manifest(whole)

    def stop(done: int) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_manifest(job, stop)
    assert not (job.output / "audio.idx").exists()
    seen: list[int] = []
    tokenize_manifest(job, seen.append)
    assert seen == [3, 6, 7]
    assert files(job.output) == files(whole.output)


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(tmp_path: Path, tokenizer: Path) -> None:
    one, two = (config(tmp_path, tokenizer, str(workers), num_workers=workers) for workers in (0, 2))
    tokenize_manifest(one)
    tokenize_manifest(two)
    assert files(one.output) == files(two.output)


def test_tokens_of_other_inputs_are_not_mixed(tmp_path: Path, tokenizer: Path) -> None:
    job = config(tmp_path, tokenizer)
    tokenize_manifest(job)
    other = TokenizeConfig(job.manifest, write_tokenizer(tmp_path), job.output, 0, 3)
    with pytest.raises(ValueError, match="another manifest or tokenizer"):
        tokenize_manifest(other)


def test_bad_manifests_are_told(tmp_path: Path, tokenizer: Path) -> None:
    job = TokenizeConfig(tmp_path / "m.jsonl", tokenizer, tmp_path / "tokens", 0)
    with pytest.raises(ValueError, match=r"m.jsonl: no such manifest"):
        tokenize_manifest(job)
    job.manifest.write_text('{"audio": "a.wav"}\n{"id": 3}\n')
    with pytest.raises(ValueError, match=r"m.jsonl:2: not a record with a key 'audio'"):
        tokenize_manifest(job)
