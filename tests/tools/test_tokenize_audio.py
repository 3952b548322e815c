"""`tools/tokenize_audio.py`, run as a user would: one process, shards, the job array, the merge."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from megatron_aqaa.data.indexed import Documents, documents_exist
from megatron_aqaa.platform.exit_status import REJECTED
from tests.tokenizer.tiny import write_corpus, write_tokenizer

TOOL = Path(__file__).parents[2] / "tools" / "tokenize_audio.py"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Twelve recordings in four blocks, one recording missing."""
    manifest = write_corpus(tmp_path / "speech", 12)
    (tmp_path / "speech/wav/7.wav").unlink()
    settings = {"manifest": manifest, "tokenizer": write_tokenizer(tmp_path), "output": tmp_path / "tokens"}
    lines = (f"{name}: {value}\n" for name, value in {**settings, "num_workers": 0, "lines_per_block": 3}.items())
    (tmp_path / "tokenize.yaml").write_text("".join(lines))
    return tmp_path / "tokenize.yaml"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code."""
    monkeypatch.setattr(sys, "argv", ["tokenize_audio.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    return int(stop.value.code or 0)


def test_shards_then_merge(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = config.parent / "tokens"
    assert run(monkeypatch, config, "shard=1/2") == 0
    assert run(monkeypatch, config, "merge=true", "num_shards=2") == 2
    assert "2 of 4 blocks are not tokenized, of shards 0 of 2: run those again (shard=0/2)" in capsys.readouterr().err
    assert run(monkeypatch, config, "shard=0/2") == 0, "rejects of a shard are told by whoever merges"
    assert capsys.readouterr().out == "" and not documents_exist(output / "audio")
    assert run(monkeypatch, config, "merge=true") == REJECTED
    said = capsys.readouterr()
    assert "1 of 12 recordings rejected" in said.err and f"see {output}/summary.html" in said.out
    assert len(Documents(output / "audio")) == 12
    assert run(monkeypatch, config, "merge=true", "max_rejected_ratio=0.05") == 1
    assert {path.name for path in output.iterdir()} == {
        *("audio.bin", "audio.idx", "audio.json", "blocks"),
        *("rejects.jsonl", "report.json", "summary.json", "summary.html"),
    }


def test_the_task_of_an_array_is_a_shard(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ID": 2, "MIN": 0, "MAX": 3, "COUNT": 4}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert run(monkeypatch, config, "shard=array") == 0
    assert [path.name for path in (config.parent / "tokens/blocks").glob("*.npz")] == ["00000006.npz"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("shard=array", "SLURM_ARRAY_TASK_ID is not set"),
        ("shard=2/2", "shard = 2/2: must lie in 0 … 1"),
        ("manifest=none.tar", "none.tar: no such tar"),
        ("manifest=a.tar.gz", "a.tar.gz: compressed"),
        ("manifest=none.jsonl", "none.jsonl: no such manifest"),
    ],
)
def test_mistakes_are_named_with_code_2(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert run(monkeypatch, config, override) == 2
    error = capsys.readouterr().err
    assert error.startswith("tokenize_audio: ") and message in error
    assert not (config.parent / "tokens").exists()
