"""`tools/check_chat.py`, run as a user would."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.data.tiny_chat import conversation, pair, said, write_lines

TOOL = Path(__file__).parents[2] / "tools" / "check_chat.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code."""
    monkeypatch.setattr(sys, "argv", [TOOL.name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    return int(stop.value.code or 0)


def test_good_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = write_lines(tmp_path / "chat.jsonl", conversation(), conversation(said("four")))
    pairs = write_lines(tmp_path / "pairs.jsonl", pair(), pair(said("four", 1), said("four", 2)))
    assert run(monkeypatch, chat, pairs) == 0, "a warning is no fault"
    warning, summary, same = capsys.readouterr().out.splitlines()
    assert warning == f"{pairs}:2: warning: both answers have the same words"
    assert summary == "2 conversations, 2 pairs, 0 bad records"
    assert same.startswith("1 pairs have the same words twice")


def test_every_bad_record_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = conversation(question=[{"type": "audio", "path": "gone.wav"}])
    chat = write_lines(tmp_path / "chat.jsonl", conversation(), missing, '{"messages": [', missing)
    (tmp_path / "empty.jsonl").touch()
    assert run(monkeypatch, chat, tmp_path / "empty.jsonl") == 1
    lines = capsys.readouterr().out.splitlines()
    gone = tmp_path / "gone.wav"
    assert lines[0] == f"{chat}:2: messages[0].content[0].path: {gone}: no such file"
    assert lines[1].startswith(f"{chat}:3: not a JSON record")
    assert lines[2].startswith(f"{chat}:4: ")
    assert lines[3].startswith(f"{tmp_path / 'empty.jsonl'}:1: the file is empty")
    assert lines[4] == "1 conversations, 0 pairs, 4 bad records"
    assert [line.split(maxsplit=1) for line in lines[5:]] == [
        ["2", "missing audio"],
        ["1", "not JSON"],
        ["1", "empty file"],
    ]


def test_spoken_and_decode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.wav").write_bytes(b"RIFF")
    path = write_lines(
        tmp_path / "chat.jsonl", conversation(), conversation(question=[{"type": "audio", "path": "cut.wav"}])
    )
    assert run(monkeypatch, "--spoken", "--decode", path) == 1
    out = capsys.readouterr().out
    assert f"{path}:1: the answer has no audio" in out
    assert f"{path}:2: messages[0].content[0].path: {tmp_path / 'cut.wav'}: not readable as wav" in out


@pytest.mark.parametrize("arguments", [[], ["nowhere.jsonl"], ["--spokn", "x.jsonl"]])
def test_wrong_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err
