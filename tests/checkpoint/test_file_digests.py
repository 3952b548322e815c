"""What `checksums.json` holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from megatron_aqaa.checkpoint.file_digests import FileDigest, absent, read_record, write_record


def test_files_that_nobody_digested_are_read_and_others_are_taken_at_their_word(tmp_path: Path) -> None:
    (tmp_path / "common.pt").write_bytes(b"values")
    (tmp_path / "__0_0.distcp").write_bytes(bytes(9))
    told = FileDigest(9, "0" * 64)
    write_record(tmp_path, {"__0_0.distcp": told})
    assert read_record(tmp_path) == {
        "__0_0.distcp": told,
        "common.pt": FileDigest(6, hashlib.sha256(b"values").hexdigest()),
    }
    assert absent(tmp_path, read_record(tmp_path) or {}) == []
    assert json.loads((tmp_path / "checksums.json").read_text())["files"]["common.pt"]["num_bytes"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["__0_0.distcp", "checksums.json", "common.pt"]


def test_a_file_that_only_another_rank_sees_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="__1_0.distcp is missing; is the run's directory on a file system that all"):
        write_record(tmp_path, {"__1_0.distcp": FileDigest(9, "0" * 64)})
    assert not (tmp_path / "checksums.json").exists()


def test_there_need_be_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
