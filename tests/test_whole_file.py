from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_aqaa.whole_file import partial_path, write_json, write_whole


def test_folders_are_made_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.counts.json"
    write_json(path, {"n": 1})
    write_json(path, {"n": 2})
    assert json.loads(path.read_text()) == {"n": 2}
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    assert partial_path(path).name == "text.partial"
