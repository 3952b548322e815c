import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_aqaa.data.indexed import Documents, DocumentWriter, documents_exist
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary.for_text(160)
DOCUMENT = st.lists(st.integers(0, VOCABULARY.size - 1), min_size=1, max_size=12)


def write(prefix: Path, documents: list[list[int]], masks: list[list[int]] | None = None) -> None:
    with DocumentWriter(prefix, VOCABULARY, with_mask=masks is not None) as writer:
        for index, document in enumerate(documents):
            writer.add(document, masks[index] if masks else None)


@given(documents=st.lists(DOCUMENT, min_size=1, max_size=8), with_mask=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reads_back_what_was_written(tmp_path: Path, documents: list[list[int]], with_mask: bool) -> None:
    masks = [[token % 2 for token in document] for document in documents] if with_mask else None
    write(tmp_path / "a", documents, masks)
    read = Documents(tmp_path / "a")
    assert [document.token_ids.tolist() for document in read] == documents
    expected = masks or [[1] * len(document) for document in documents]
    assert [document.loss_mask.tolist() for document in read] == expected
    assert read.lengths.tolist() == [len(document) for document in documents]


def test_megatron_reads_the_files_without_us(tmp_path: Path) -> None:
    write(tmp_path / "a", [[5, 6, 7], [8]])
    dataset = IndexedDataset(str(tmp_path / "a"))
    assert [dataset[i].tolist() for i in range(2)] == [[5, 6, 7], [8]]
    assert dataset.document_indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("vocabulary", "itemsize"), [(VOCABULARY, 2), (Vocabulary(), 4)])
def test_bytes_per_token_follow_the_vocabulary(tmp_path: Path, vocabulary: Vocabulary, itemsize: int) -> None:
    with DocumentWriter(tmp_path / "a", vocabulary) as writer:
        writer.add([vocabulary.size - 1, 0])
    assert (tmp_path / "a.bin").stat().st_size == 2 * itemsize
    assert Documents(tmp_path / "a")[0].token_ids.tolist() == [vocabulary.size - 1, 0]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with DocumentWriter(tmp_path / "a", VOCABULARY, with_mask=True) as writer:
            writer.add([1, 2], [0, 1])
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_killed_write_looks_incomplete_and_can_be_repeated(tmp_path: Path) -> None:
    if os.fork() == 0:
        with DocumentWriter(tmp_path / "a", VOCABULARY) as writer:
            writer.add(list(range(1, 9)))
            os._exit(9)  # like kill -9: nothing is cleaned up
    os.wait()
    assert os.listdir(tmp_path) and not documents_exist(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a\.idx: no such file; run"):
        Documents(tmp_path / "a")
    write(tmp_path / "a", [[3]])
    assert Documents(tmp_path / "a")[0].token_ids.tolist() == [3]


def test_a_rewrite_without_mask_removes_the_old_mask(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2]], [[0, 1]])
    write(tmp_path / "a", [[4, 5, 6]])
    assert Documents(tmp_path / "a").mask is None
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx"]


@pytest.mark.parametrize(
    ("document", "mask", "message"),
    [
        ([], [], r"a, document 1: expected token ids \[S\], found"),
        ([0.5], [1], "expected token ids"),
        ([[1, 2]], [[1, 1]], "expected token ids"),
        ([1, VOCABULARY.size], [0, 1], rf"token id {VOCABULARY.size} lies outside the vocabulary 0 … "),
        ([-1, 2], [0, 1], "token id -1 lies outside"),
        ([1, 2], [1], "one 0 or 1 for each of 2 tokens"),
        ([1, 2], [1, 2], "one 0 or 1 for each of 2 tokens"),
        ([1, 2], None, "a loss mask for every document"),
    ],
)
def test_bad_documents_are_named(tmp_path: Path, document: list, mask: list | None, message: str) -> None:
    with DocumentWriter(tmp_path / "a", VOCABULARY, with_mask=True) as writer:
        writer.add([1], [1])
        with pytest.raises(ValueError, match=message):
            writer.add(document, mask)
    assert len(Documents(tmp_path / "a")) == 1


def test_a_mask_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no loss mask"), DocumentWriter(tmp_path / "a", VOCABULARY) as writer:
        writer.add([1], [1])


def test_no_documents_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no documents to write"), DocumentWriter(tmp_path / "a", VOCABULARY):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("a.idx", 0, r"a\.idx: is empty"),
        ("a.idx", 20, r"a\.idx: not a complete Megatron index \(20 bytes\)"),
        ("a.idx", 60, "not a complete Megatron index"),
        ("a.bin", 6, r"a\.bin: holds 6 bytes, its index says 10"),
        ("a_mask.bin", 1, r"a_mask\.bin: holds 1 bytes, its index says 5"),
    ],
)
def test_damaged_files_are_named_with_the_remedy(tmp_path: Path, name: str, size: int, message: str) -> None:
    write(tmp_path / "a", [[1, 2, 3], [4, 5]], [[0, 0, 1], [0, 1]])
    os.truncate(tmp_path / name, size)
    with pytest.raises(ValueError, match=message + ".*; run the step that writes it again"):
        Documents(tmp_path / "a")


def test_a_foreign_file_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "a.idx").write_bytes(b"RIFF" + bytes(60))
    (tmp_path / "a.bin").write_bytes(bytes(8))
    with pytest.raises(ValueError, match="not a complete Megatron index"):
        Documents(tmp_path / "a")


def test_a_mask_of_other_documents_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2, 3]], [[0, 0, 1]])
    write(tmp_path / "b", [[1, 2], [3]], [[0, 1], [1]])
    for suffix in (".bin", ".idx"):
        os.replace(tmp_path / f"b_mask{suffix}", tmp_path / f"a_mask{suffix}")
    with pytest.raises(ValueError, match=r"a_mask\.idx: documents differ"):
        Documents(tmp_path / "a")
