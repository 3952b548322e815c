from pathlib import Path

import pytest

from megatron_aqaa.data.manifest import read_recordings, select

GOOD = '{"id": 7, "audio": "a.wav", "text": "hi", "role": "user", "split": "train", "duration_s": 1.2, "answer": "yes"}'


def write(directory: Path, *lines: str) -> Path:
    path = directory / "manifest.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_a_line_is_a_recording(tmp_path: Path) -> None:
    other = GOOD.replace('"user"', '"assistant"').replace('"answer": "yes"', '"style": "slow"').replace("train", "test")
    recordings = read_recordings(write(tmp_path, GOOD, other))
    assert [(r.line, r.id, r.role, r.style, r.answer) for r in recordings] == [
        (0, 7, "user", "neutral", "yes"),
        (1, 7, "assistant", "slow", ""),
    ]
    assert recordings[0].audio == tmp_path / "a.wav"
    assert select(recordings, "train") == recordings[:1]
    assert select(recordings, "test", ("user",)) == []


def test_a_record_needs_nothing_but_its_audio(tmp_path: Path) -> None:
    recordings = read_recordings(
        write(tmp_path, '{"audio": "a.wav"}', '{"audio": "b.wav", "text": " \u2028 ", "role": null, "id": "b"}')
    )
    assert [(r.text, r.role, r.split, r.duration_s, r.id) for r in recordings] == [
        ("", "", "train", 0.0, n) for n in (0, 1)
    ]
    assert select(recordings, "train", ("user",)) == select(recordings, "train", ("assistant",)) == recordings
    assert select(recordings, "train", ()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD[:-20], r"manifest\.jsonl:2: not a JSON record .*cut off"),
        ("[1, 2]", r"expected a JSON object, found '\[1, 2\]'"),
        (GOOD.replace('"audio": "a.wav", ', ""), "audio = None; expected the name of a file"),
        (GOOD.replace('"hi"', "7"), "text = 7; expected a text, or none"),
        (GOOD.replace("1.2", '"1.2"'), "duration_s = '1.2'; expected a number"),
        (GOOD.replace("user", "robot"), "role = 'robot'; expected user, assistant, or none"),
    ],
)
def test_bad_records_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recordings(write(tmp_path, GOOD, line))


def test_missing_empty_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such manifest"):
        read_recordings(tmp_path / "manifest.jsonl")
    with pytest.raises(ValueError, match="no records"):
        read_recordings(write(tmp_path))
    (tmp_path / "manifest.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_recordings(tmp_path / "manifest.jsonl")
