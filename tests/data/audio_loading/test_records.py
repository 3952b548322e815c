from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megatron_aqaa.audio.tar_member import TarMember
from megatron_aqaa.data.audio_loading.records import AudioRecord, AudioSource, Reject, read_index
from tests.data.recordings import encoded, voice, write_mixed, write_tar

WAV = encoded(voice(0, 1.0, 16000), 16000, "wav")


def test_a_manifest_of_ours_and_of_nemo(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(WAV)
    lines = [
        {"audio": "a.wav", "duration_s": 2.5, "id": 7, "text": "hi"},
        {"audio_filepath": "a.wav", "duration": 1.5},
        {"audio": "a.wav"},
        {"audio": "nowhere.wav", "duration_s": 3},  # found out when it is read
        {"audio": "nowhere.wav"},
        {"audio": "a.wav", "duration_s": 0.01},
        {"audio": "a.wav", "duration_s": 61},
        {"audio": "a.wav", "duration": 1, "offset": 4.5},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    index = read_index(AudioSource(tmp_path / "m.jsonl"))

    assert [(r.id, r.duration_s) for r in index.records] == [
        ("7", 2.5),
        ("a.wav", 1.5),
        ("a.wav", 1),
        ("nowhere.wav", 3),
    ]
    assert index.records[0].audio == tmp_path / "a.wav" and index.records[0].fields["text"] == "hi"
    reasons = [reason for _, reason in index.rejects]
    for reason, words in zip(reasons, ["no such file", "0.010 s", "61.000 s", "offset 4.5 s"], strict=True):
        assert words in reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"audio": "a.wav"}\n{"audio": ', r"m\.jsonl:2: not a record"),
        ('{"sound": "a.wav"}\n', r"m\.jsonl:1: not a record with a key 'audio'"),
        ('{"audio": 3}\n', r"m\.jsonl:1: audio = 3; expected a path"),
        ("[]\n", r"m\.jsonl:1: not a record"),
        ("", "no usable recording, 0 set aside"),
        ('{"audio": "b.wav"}\n', "no usable recording, 1 set aside; the first: .*b.wav: no such file"),
    ],
)
def test_a_bad_manifest_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.wav").write_bytes(WAV)
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_index(AudioSource(tmp_path / "m.jsonl"))


def test_a_folder(tmp_path: Path) -> None:
    paths = write_mixed(tmp_path / "b", 5) + write_mixed(tmp_path / "a" / "c", 5)
    (tmp_path / "notes.txt").write_text("no recording")
    (tmp_path / "z.wav").write_bytes(WAV[:30])
    index = read_index(AudioSource(tmp_path, "folder"))
    assert [r.id for r in index.records] == [str(p.relative_to(tmp_path)) for p in [*paths[5:], *paths[:5]]]
    assert [Path(audio).name for audio, _ in index.rejects] == ["z.wav"]
    with pytest.raises(ValueError, match="no such folder"):
        read_index(AudioSource(tmp_path / "nowhere", "folder"))


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.wav").write_bytes(WAV)
    scandir = os.scandir

    def refuse(path: str) -> object:  # root may read everything: permissions cannot make this happen
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match="locked: a folder that cannot be read .Permission denied"):
        read_index(AudioSource(tmp_path, "folder"))


def test_tars(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "train-0.tar",
        {
            "x/one.wav": WAV,
            "x/one.json": b'{"text": "first", "duration": 1.25}',
            "x/two.flac": encoded(voice(1, 0.5, 24000, 2), 24000, "flac"),
            "x/two.txt": "zwei ä\n".encode(),
            "x/four.wav": WAV,
            "x/four.json": b"{",
            "x/five.wav": WAV[:20],
        },
    )
    write_tar(tmp_path / "train-1.tar", {"one.v2.wav": WAV})
    for source in (tmp_path, tmp_path / "train-*.tar"):
        index = read_index(AudioSource(source, "webdataset"))
        assert [(r.id, r.duration_s, r.fields.get("text")) for r in index.records] == [
            ("x/one.wav", 1.25, "first"),
            ("x/two.flac", 0.5, "zwei ä"),
            ("one.v2.wav", 1.0, None),
        ]
        words = ["x/four.json is not JSON", "not readable as wav"]
        for reject, word in zip(index.rejects, words, strict=True):
            assert reject.audio in reject.reason and word in reject.reason
    audio = index.records[0].audio
    assert isinstance(audio, TarMember) and audio.open().read() == WAV
    with pytest.raises(ValueError, match="no such tar"):
        read_index(AudioSource(tmp_path / "test-*.tar", "webdataset"))


def test_a_damaged_tar_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {f"{i}.wav": WAV for i in range(3)})
    whole.write_bytes(whole.read_bytes()[:66_000])
    write_tar(tmp_path / "b.tar", {"good.wav": WAV})
    index = read_index(AudioSource(tmp_path, "webdataset"))
    assert [r.id for r in index.records] == ["0.wav", "1.wav", "good.wav"]
    assert [reject.audio for reject in index.rejects] == [str(whole)]
    assert "cut off" in index.rejects[0].reason


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(WAV)
    (tmp_path / "m.jsonl").write_bytes(b'{"audio": "caf\xe9.wav"}\n')
    assert read_index(AudioSource(tmp_path / "m.jsonl")).records == [
        AudioRecord(name, tmp_path / name, 1.0, fields={"audio": name})
    ]
    assert read_index(AudioSource(tmp_path, "folder")).records[0].audio == tmp_path / name


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="min_duration_s 2 must be positive and below max_duration_s 1"):
        AudioSource(Path("x"), min_duration_s=2, max_duration_s=1)
    assert Reject("a", "b")._fields == ("audio", "reason")
