"""Tokenizing as an array of tasks, and the job that waits for them: the bytes of one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_aqaa.config import save_config
from megatron_aqaa.data.audio_tokens import TokenizeConfig, tokenize_manifest
from tests.slurm.cluster import Cluster
from tests.slurm.launch import launch
from tests.tokenizer.tiny import write_corpus, write_tokenizer

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def files(directory: Path) -> dict[str, bytes]:
    return {
        name: (directory / name).read_bytes() for name in ("audio.bin", "audio.idx", "report.json", "rejects.jsonl")
    }


def test_an_array_and_the_job_after_it_write_the_data_set_of_one_process(cluster: Cluster, tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "speech", 20)
    config = TokenizeConfig(manifest, write_tokenizer(tmp_path), tmp_path / "whole", 0, lines_per_block=3)
    assert tokenize_manifest(config) == 0
    save_config(replace(config, output=tmp_path / "tokens"), tmp_path / "tokenize.yaml")
    command = ["tools/tokenize_audio.py", str(tmp_path / "tokenize.yaml")]
    jobs = launch(cluster, tmp_path, {"name": "tokens", "command": command}, "--array", "3")
    assert list(jobs) == ["tokens_shards", "tokens"]
    cluster.wait(jobs["tokens"])
    logs = sorted((tmp_path / "log").glob("tokens_shards-*_*.out"))
    assert [path.stem.split("_")[-1] for path in logs] == ["0", "1", "2"]
    assert [path.read_text().count("recordings: ") >= 1 for path in logs] == [True] * 3
    assert files(tmp_path / "tokens") == files(tmp_path / "whole")
