"""The index of a WebDataset tar: samples, and everything that is wrong, by name."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_aqaa.data.tar_index import index_tar
from megatron_aqaa.data.tar_paths import names_tars, tar_paths


def pack(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def reasons(path: Path) -> dict[str, str]:
    """What is rejected: member, or nothing for the tar itself → reason."""
    lines = [line for line in index_tar(path) if "rejected" in line]
    for line in lines:
        assert line["rejected"].startswith(f"{line['audio']}: ")
    return {line["audio"].partition("#")[2]: line["rejected"].removeprefix(line["audio"] + ": ") for line in lines}


def test_samples_in_order_with_their_words(tmp_path: Path) -> None:
    wave = bytes(range(256)) * 5
    members = [
        ("a/1.flac", wave),
        ("a/1.json", b'{"text": "one", "split": "test", "audio": "old"}'),
        ("a/2.TXT", b"  two\n"),
        ("a/2.Wav", wave[7:]),
        ("a/3.mic1.mp3", b"x"),
        ("README.md", b"no sample"),
        ("a/4.json", b'{"id": 4}'),
        ("a/4.txt", "vier ü".encode()),
        ("a/4.ogg", b"y"),
    ]
    tar = pack(tmp_path / "s.tar", members)
    lines = index_tar(tar)
    content = tar.read_bytes()
    assert [line["audio"] for line in lines] == [f"{tar}#a/{n}" for n in ("1.flac", "2.Wav", "3.mic1.mp3", "4.ogg")]
    assert [line.get("text") for line in lines] == ["one", "two", None, "vier ü"]
    assert (lines[0]["split"], lines[3]["id"]) == ("test", 4)
    for line, wanted in zip(lines, (wave, wave[7:], b"x", b"y"), strict=True):
        offset, size = line["member"]
        assert content[offset : offset + size] == wanted


def test_samples_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    members = [
        ("1.wav", b"a"),
        ("1.flac", b"a"),
        ("2.txt", b"words alone"),
        ("3.wav", b"a"),
        ("3.json", b'{"text": '),
        ("4.wav", b"a"),
        ("4.json", b"[1, 2]"),
        ("5.wav", b"a"),
        ("5.txt", b"\xff\xfe"),
        ("6.wav", b"a"),
        ("6.txt", b"one"),
        ("6.txt", b"two"),
        ("7.wav", b"good"),
        ("8.wav", b"a"),
        ("7.txt", b"too late"),
        ("7.wav", b"again"),
    ]
    found = reasons(pack(tmp_path / "s.tar", members))
    assert list(found) == ["1.wav", "2.txt", "3.wav", "4.wav", "5.wav", "6.wav", "7.wav"]
    wanted = ["must have one recording", "found none", "3.json is not JSON", "expected a JSON object, found '[1, 2]'"]
    wanted += ["5.txt is not UTF-8", "6.txt is there twice", "a second sample of the key '7'"]
    assert all(words in reason for words, reason in zip(wanted, found.values(), strict=True)), found


def test_links_are_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        info = tarfile.TarInfo("1.wav")
        info.type, info.linkname = tarfile.SYMTYPE, "2.wav"
        archive.addfile(info)
    assert "link or no plain file; pack it with tar --dereference" in reasons(tmp_path / "s.tar")["1.wav"]


@pytest.mark.parametrize(
    ("cut", "kept", "name", "words"),
    [
        (512 + 700, 0, "0.wav", "truncated, 700 of 1000 bytes"),  # in the first recording
        (2 * 1536 + 300, 2, "", "damaged or cut off behind 1.wav"),  # in a header
        (3 * 1536, 3, "", "damaged or cut off behind 2.wav"),  # between two members
        (4 * 1536 + 512 + 1, 4, "4.wav", "truncated, 1 of 1000 bytes"),
        (5 * 1536, 5, "", "cut off behind 4.wav"),  # the mark of the end is lost
    ],
)
def test_a_tar_that_was_cut_off(tmp_path: Path, cut: int, kept: int, name: str, words: str) -> None:
    tar = pack(tmp_path / "s.tar", [(f"{n}.wav", bytes([n + 1]) * 1000) for n in range(5)])
    tar.write_bytes(tar.read_bytes()[:cut])
    assert sum("rejected" not in line for line in index_tar(tar)) == kept
    assert words in reasons(tar)[name]
    assert "" in reasons(tar), "that more may be lost is told of the tar itself"


def test_a_damaged_header_in_the_middle(tmp_path: Path) -> None:
    tar = pack(tmp_path / "s.tar", [(f"{n}.wav", bytes([n + 1]) * 1000) for n in range(5)])
    content = bytearray(tar.read_bytes())
    content[3 * 1536 + 148 : 3 * 1536 + 156] = b"checksum"
    tar.write_bytes(content)
    assert [line["audio"] for line in index_tar(tar)][:3] == [f"{tar}#{n}.wav" for n in range(3)]
    assert reasons(tar) == {"": "damaged or cut off behind 2.wav; copy it again, what followed is not in the data set"}


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b" + bytes(2000)])
def test_what_is_no_tar(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    assert "not readable as an uncompressed tar" in reasons(tmp_path / "s.tar")[""]


def test_a_tar_without_samples(tmp_path: Path) -> None:
    assert "holds no samples" in reasons(pack(tmp_path / "s.tar", [("a.npy", b"1")]))[""]
    assert "holds no samples" in reasons(pack(tmp_path / "t.tar", []))[""]


def test_which_tars_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for number in (0, 1, 2, 10):
        pack(Path(f"data/s-{number:02d}.tar"), [])
    every = [tmp_path / f"data/s-{number}.tar" for number in ("00", "01", "02", "10")]
    assert tar_paths(Path("data")) == tar_paths(Path("data/s-*.tar")) == every
    assert tar_paths(Path("data/s-{00..02}.tar")) == every[:3]
    assert tar_paths(Path("data/s-10.tar")) == every[3:]
    with pytest.raises(ValueError, match=r"s-03.tar: no such tar"):
        tar_paths(Path("data/s-{00..10}.tar"))
    with pytest.raises(ValueError, match=r"t-\*.tar: no such tar"):
        tar_paths(Path("data/t-*.tar"))


def test_manifests_and_tars_are_told_apart(tmp_path: Path) -> None:
    assert names_tars(tmp_path) and names_tars(Path("a-{0..3}.tar"))
    assert not names_tars(Path("manifest.jsonl"))
    with pytest.raises(ValueError, match=r"a.tar.gz: compressed"):
        names_tars(Path("a.tar.gz"))


def test_lines_are_json(tmp_path: Path) -> None:
    tar = tmp_path / "s.tar"
    with tarfile.open(tar, "w", encoding="utf-8", errors="surrogateescape") as archive:
        archive.addfile(tarfile.TarInfo("\udce9.wav"))
    (line,) = index_tar(tar)
    assert json.loads(json.dumps(line)) == line and line["member"][1] == 0
