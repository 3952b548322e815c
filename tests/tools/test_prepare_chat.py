"""`tools/prepare_chat.py` and `tools/inspect_dataset.py` on its pairs, run as a user would."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import soundfile
import yaml

from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.platform.exit_status import REJECTED
from tests.data.tiny_chat import conversation, pair, said, write_lines
from tests.tokenizer import tiny

ROOT = Path(__file__).parents[2]


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    """Exit code of a tool."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
    return int(stop.value.code or 0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two conversations, one of them bad, and two pairs."""
    tiny.write_text_model(tmp_path)
    settings = {
        "tokenizer": str(tmp_path),
        "output": str(tmp_path / "out"),
        "sft": {"train": [str(write_lines(tmp_path / "chat.jsonl", conversation(said("four", 4)), '{"messages": ['))]},
        "preference": {"train": [str(write_lines(tmp_path / "pairs.jsonl", pair(), pair(said("x", 1), said("x", 2))))]},
        "num_workers": 0,
    }
    (tmp_path / "chat.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "chat.yaml"


def test_a_table_rejects_and_the_exit_code(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "prepare_chat.py", config) == 1, "a fourth is more than is allowed by default"
    out, err = capsys.readouterr()
    output = config.parent / "out"
    assert len(Documents(output / "sft/train")) == 1 and len(Documents(output / "preference/train")) == 4
    assert "sft/train: 1 rejected: not JSON" in out
    assert "preference/train: 1 pairs differ in audio alone" in out
    assert "1 of 4 records rejected, see" in err
    summary = json.loads((output / "summary.json").read_text())
    assert summary["data_sets"]["sft/train"]["rejects"] == {"not JSON": 1}
    assert run(monkeypatch, "prepare_chat.py", config, "max_rejected_ratio=0.3") == REJECTED
    chat = write_lines(config.parent / "good.jsonl", conversation())
    assert run(monkeypatch, "prepare_chat.py", config, f"sft={{train: [{chat}]}}") == 0


def test_the_array_of_a_cluster(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_tokenizer(config.parent)
    parts = [[{"type": "audio", "path": f"{index}.wav"}] for index in range(3)]
    for index in range(3):
        soundfile.write(config.parent / f"{index}.wav", tiny.speech(index, 2)[0], 16000)
    write_lines(config.parent / "chat.jsonl", *(conversation("four", part) for part in parts))
    for shard in (1, 0):
        settings = (f"shard={shard}", "num_shards=2", "files_per_block=1")
        assert run(monkeypatch, "prepare_chat.py", config, *settings) == 0
    assert len(list((config.parent / "out/audio/blocks").glob("*.npz"))) == 3
    assert not (config.parent / "out/sft").exists()
    assert run(monkeypatch, "prepare_chat.py", config, "files_per_block=1") == 0
    assert len(Documents(config.parent / "out/sft/train")) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strict=true", "chat.jsonl:2: not a JSON record"),
        ("tokenizer=nowhere", "nowhere/vocabulary.yaml: no such vocabulary file"),
        ("sft={train: [nowhere.jsonl]}", "nowhere.jsonl: no such file"),
        ("histry=audio", "unknown key histry; did you mean history?"),
        ("answer_format={layout: text_last}", "answer_format.layout"),
        ("shard=1", "shard = 1: must lie in 0 … 0"),
    ],
)
def test_wrong_settings_are_named_and_nothing_is_written(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert run(monkeypatch, "prepare_chat.py", config, override) == 2
    assert message in capsys.readouterr().err
    assert not (config.parent / "out").exists()


def test_the_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    files = [f"examples/chat/{name}.jsonl" for name in ("conversations", "preferences")]
    assert run(monkeypatch, "check_chat.py", "--spoken", *files) == 0
    assert "3 conversations, 2 pairs, 0 bad records" in capsys.readouterr().out
    tiny.write_text_model(tmp_path)
    settings = (f"tokenizer={tmp_path}", f"output={tmp_path / 'out'}")
    assert run(monkeypatch, "prepare_chat.py", "examples/chat/prepare.yaml", *settings) == 0
    assert len(Documents(tmp_path / "out/sft/example")) == 3
    assert len(Documents(tmp_path / "out/preference/example")) == 4


def test_inspect_shows_a_pair_side_by_side(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "prepare_chat.py", config)
    capsys.readouterr()
    prefix = config.parent / "out/preference/train"
    show = ("inspect_dataset.py", prefix, "--tokenizer", config.parent, "--count", 1)
    assert run(monkeypatch, *show) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pair 0 of 2: prompt ")
    assert "what is two plus two<|EOT|><|BOT|>assistant\\n" in lines[1]
    chosen, rejected = lines.index("chosen"), lines.index("rejected")
    assert "that makes four" in lines[chosen + 1] and "the sky is blue" in lines[rejected + 1]
    assert not any("two plus two" in line for line in lines[chosen:])
    assert run(monkeypatch, *show[:-2], "--index", 2) == 2
    assert "has pairs 0 … 1, not 2" in capsys.readouterr().err
