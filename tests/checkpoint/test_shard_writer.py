"""Files that are digested while they are written."""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import pytest
import torch

from megatron_aqaa.checkpoint.file_digests import FileDigest
from megatron_aqaa.checkpoint.shard_writer import DigestingFileSystem


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    files = DigestingFileSystem()
    with files.create_stream(tmp_path / "a.distcp", "wb") as stream:
        assert stream.write(b"head") == 4
        torch.save(torch.arange(9), stream)
        torch.save({"x": torch.ones(3, 4)}, stream)
        stream.write(memoryview(torch.arange(5).numpy()))
        assert stream.tell() == (tmp_path / "a.distcp").stat().st_size
    written = (tmp_path / "a.distcp").read_bytes()
    assert written.startswith(b"head") and len(written) > 40
    assert files.digests == {"a.distcp": FileDigest(len(written), hashlib.sha256(written).hexdigest())}


def test_other_streams_are_torchs_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    files = DigestingFileSystem()
    with files.create_stream(tmp_path / "file", "rb") as stream:
        assert stream.read() == b"content"
    assert not files.digests


def test_a_write_that_fails_names_the_file_and_the_reason(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    files = DigestingFileSystem()
    try:
        with (
            pytest.raises(OSError, match="File too large: '.*large.distcp'"),
            files.create_stream(tmp_path / "large.distcp", "wb") as stream,
        ):
            torch.save(torch.arange(1000), stream)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not files.digests
