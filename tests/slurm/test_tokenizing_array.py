"""Data preparation as an array of tasks, and the job that waits for them: the bytes of one process, rejects and all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from megatron_aqaa.config import save_config
from megatron_aqaa.data.audio_tokens import TokenizeConfig, tokenize_manifest
from megatron_aqaa.data.prepare_chat import ChatPreparation, PrepareChatConfig
from tests.data.tiny_chat import conversation, write_lines
from tests.slurm.cluster import Cluster
from tests.slurm.launch import launch
from tests.tokenizer.tiny import write_corpus, write_tokenizer

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@dataclass(frozen=True)
class Speech:
    """Twenty recordings, one of them missing, and what one process makes of them."""

    config: TokenizeConfig
    whole: dict[str, bytes]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    folder = tmp_path_factory.mktemp("speech")
    manifest = write_corpus(folder / "speech", 20)
    (folder / "speech/wav/7.wav").unlink()
    config = TokenizeConfig(manifest, write_tokenizer(folder), folder / "whole", 0, lines_per_block=3)
    assert tokenize_manifest(config) == 1
    return Speech(config, files(folder / "whole"))


def files(directory: Path) -> dict[str, bytes]:
    return {
        name: (directory / name).read_bytes() for name in ("audio.bin", "audio.idx", "report.json", "rejects.jsonl")
    }


def chain(speech: Speech, folder: Path, max_rejected_ratio: float) -> dict[str, Any]:
    """An array and its second job, and a stage that waits for them: here, preparing chats that need no audio."""
    save_config(
        replace(speech.config, output=folder / "tokens", max_rejected_ratio=max_rejected_ratio),
        folder / "tokenize.yaml",
    )
    lines = write_lines(folder / "chat.jsonl", conversation())
    save_config(PrepareChatConfig(speech.config.tokenizer, folder / "next", {"train": (lines,)}), folder / "next.yaml")
    tokens = {
        "name": "tokens", "command": ["tools/tokenize_audio.py", f"{folder}/tokenize.yaml"], "slurm": {"array_size": 3}
    }  # fmt: skip
    after = {"name": "after", "command": ["tools/prepare_chat.py", f"{folder}/next.yaml"], "needs": ["tokens"]}
    return {"stages": [tokens, after]}


def test_the_chain_goes_on_after_a_rejected_recording(cluster: Cluster, speech: Speech, tmp_path: Path) -> None:
    jobs = launch(cluster, tmp_path, chain(speech, tmp_path, 0.1), "--chain")
    assert list(jobs) == ["tokens_shards", "tokens", "after"]
    cluster.wait(jobs["after"])
    logs = sorted((tmp_path / "log").glob("tokens_shards-*_*.out"))
    assert [path.stem.split("_")[-1] for path in logs] == ["0", "1", "2"]
    assert [path.read_text().count("recordings: ") >= 1 for path in logs] == [True] * 3
    assert files(tmp_path / "tokens") == speech.whole
    said = cluster.output(jobs["tokens"])
    assert f"1 of 20 recordings rejected, see {tmp_path}/tokens/rejects.jsonl" in said
    assert "records were rejected, see above; what waits for this job goes on" in said
    assert (tmp_path / "next/sft/train.idx").exists()


def test_the_chain_ends_where_too_many_are_rejected(cluster: Cluster, speech: Speech, tmp_path: Path) -> None:
    jobs = launch(cluster, tmp_path, chain(speech, tmp_path, 0.04), "--chain")
    cluster.wait(jobs["tokens"], "FAILED")
    cluster.wait(jobs["after"], "CANCELLED")
    assert files(tmp_path / "tokens") == speech.whole
    assert "1 of 20 recordings rejected" in cluster.output(jobs["tokens"])


def chats(speech: Speech, folder: Path, output: str) -> PrepareChatConfig:
    """Spoken questions, one of each recording; that of the missing one is rejected."""
    sounds = sorted(speech.config.manifest.parent.glob("wav/*.wav"))
    questions = [[{"type": "audio", "path": str(path)}] for path in [*sounds, folder / "missing.wav"]]
    lines = write_lines(folder / "chat.jsonl", *(conversation(question=question) for question in questions))
    return PrepareChatConfig(
        speech.config.tokenizer, folder / output, {"train": (lines,)}, num_workers=0, files_per_block=2
    )


def test_chats_in_an_array_are_those_of_one_process(cluster: Cluster, speech: Speech, tmp_path: Path) -> None:
    whole = ChatPreparation(chats(speech, tmp_path, "whole"))
    whole.tokenize()
    assert whole.write()["rejected"] == 1
    save_config(chats(speech, tmp_path, "shared"), tmp_path / "chat.yaml")
    command = ["tools/prepare_chat.py", str(tmp_path / "chat.yaml")]
    jobs = launch(cluster, tmp_path, {"name": "chats", "command": command}, "--array", "3")
    cluster.wait(jobs["chats"])
    assert "1 of 20 records rejected" in cluster.output(jobs["chats"])
    for name in ("train.bin", "train.idx", "train_rejects.jsonl"):
        one, shared = (tmp_path / output / "sft" / name for output in ("whole", "shared"))
        assert shared.read_bytes() == one.read_bytes(), name
