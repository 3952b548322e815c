from __future__ import annotations

import json
import os
from pathlib import Path

from megatron_aqaa.data.finished import digest_of, finish, finished, record_of
from megatron_aqaa.data.indexed import DocumentWriter, remove_documents
from megatron_aqaa.vocabulary import Vocabulary


def write(prefix: Path) -> None:
    with DocumentWriter(prefix, Vocabulary.for_text(160)) as writer:
        writer.add([1, 20, 3])


def test_the_digest_follows_settings_and_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    first = digest_of({"b": Path("x"), "a": 1}, [path])
    assert digest_of({"a": 1, "b": Path("x")}, [path]) == first
    assert digest_of({"a": 2, "b": Path("x")}, [path]) != first
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert digest_of({"a": 1, "b": Path("x")}, [path]) != first


def test_a_data_set_is_finished_if_it_is_there_and_of_the_same_inputs(tmp_path: Path) -> None:
    prefix = tmp_path / "train.v1"
    assert record_of(prefix) == {} and finished(prefix, "x") is None
    write(prefix)
    finish(prefix, "x", {"documents": 1, "kind": "sft"})
    assert finished(prefix, "x") == {"documents": 1, "kind": "sft"}
    assert record_of(prefix)["kind"] == "sft" and json.loads((tmp_path / "train.v1.json").read_text())["digest"] == "x"
    assert finished(prefix, "y") is None
    remove_documents(prefix)
    assert finished(prefix, "x") is None


def test_a_data_set_without_documents_needs_no_files(tmp_path: Path) -> None:
    finish(tmp_path / "none", "x", {"documents": 0})
    assert finished(tmp_path / "none", "x") == {"documents": 0}
