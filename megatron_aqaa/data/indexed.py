"""Documents on disk in Megatron's indexed format, written whole or not at all, and checked before they are read.

A data set is a path *prefix*. `<prefix>.bin` holds the token ids of all documents one after the other, `<prefix>.idx`
their lengths; `<prefix>_mask.bin/.idx`, where present, holds one 0 or 1 for every token: 1 where the model is to
learn to say it. Any tool that reads Megatron's format reads these files.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from megatron.core.datasets.indexed_dataset import _INDEX_HEADER, DType, IndexedDataset, IndexedDatasetBuilder
from numpy.typing import ArrayLike, NDArray

from megatron_aqaa.vocabulary import Vocabulary

MASK_SUFFIX = "_mask"
_REMEDY = "run the step that writes it again (tools/tokenize_audio.py for audio, tools/prepare_data.py for the rest)"


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        token_ids: [S] int64.
        loss_mask: [S] uint8, 1 where the token is a target; all ones if the data set has no mask.
    """

    token_ids: NDArray[np.int64]
    loss_mask: NDArray[np.uint8]


class DocumentWriter:
    """Writes a data set under `prefix`; use as a context manager.

    The index files appear when the block ends, after the data files are complete: a block that raises, or a process
    that is killed, leaves nothing that can be opened.

    Args:
        prefix: Path without suffix; its folder is made.
        vocabulary: Ids outside it are refused; its size picks two or four bytes a token.
        with_mask: Also write the loss mask.
    """

    def __init__(self, prefix: str | Path, vocabulary: Vocabulary, with_mask: bool = False) -> None:
        self.prefix, self.vocabulary = Path(prefix), vocabulary
        self.num_documents = 0
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        dtypes = {self.prefix: DType.optimal_dtype(vocabulary.size)}
        if with_mask:
            dtypes[mask_prefix(prefix)] = np.uint8
        self._builders = {path: IndexedDatasetBuilder(f"{path}.bin.partial", dtype) for path, dtype in dtypes.items()}

    def add(self, token_ids: ArrayLike, loss_mask: ArrayLike | None = None) -> None:
        """Append one document.

        Args:
            token_ids: [S] integers.
            loss_mask: [S] zeros and ones; given exactly if the writer was made `with_mask`.

        Raises:
            ValueError: Empty document, id outside the vocabulary, or mask that does not fit.
        """
        columns = [np.asarray(token_ids)]
        if loss_mask is not None:
            columns.append(np.asarray(loss_mask))
        self._check(columns)
        for builder, column in zip(self._builders.values(), columns, strict=True):
            builder.add_document(column, [len(column)])
        self.num_documents += 1

    def _check(self, columns: list[NDArray[np.generic]]) -> None:
        where = f"{self.prefix}, document {self.num_documents}"
        token_ids, masks = columns[0], columns[1:]
        if token_ids.ndim != 1 or not len(token_ids) or token_ids.dtype.kind not in "iu":
            raise ValueError(f"{where}: expected token ids [S], found {token_ids.dtype} {list(token_ids.shape)}")
        low, high = token_ids.min(), token_ids.max()
        if low < 0 or high >= self.vocabulary.size:
            outside = low if low < 0 else high
            raise ValueError(f"{where}: token id {outside} lies outside the vocabulary 0 … {self.vocabulary.size - 1}")
        if len(columns) != len(self._builders):
            expected = "a loss mask for every document" if len(self._builders) == 2 else "no loss mask"
            raise ValueError(f"{where}: this data set has {expected}")
        if masks and (masks[0].shape != token_ids.shape or not np.isin(masks[0], (0, 1)).all()):
            raise ValueError(f"{where}: the loss mask must hold one 0 or 1 for each of {len(token_ids)} tokens")

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path, builder in self._builders.items():
            builder.finalize(f"{path}.idx.partial")
        if kind is None and self.num_documents:
            self._publish()
            return
        self._discard()
        if kind is None:
            raise ValueError(f"{self.prefix}: no documents to write; check that the records it is made from exist")

    def _publish(self) -> None:
        # the old index goes first and the new one comes last, so that index and data never belong to two writes
        remove_documents(self.prefix)
        for path in reversed(self._builders):
            for suffix in (".bin", ".idx"):
                _sync(f"{path}{suffix}.partial")
                os.replace(f"{path}{suffix}.partial", f"{path}{suffix}")

    def _discard(self) -> None:
        for path in self._builders:
            for suffix in (".bin.partial", ".idx.partial"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)


class Documents:
    """A data set opened for reading through memory maps; `documents[i]` is a `Document`.

    Attributes:
        tokens: Megatron's reader of the token ids.
        mask: Megatron's reader of the loss mask, or None.
        lengths: Tokens of every document, [number of documents] int32.

    Raises:
        ValueError: A file is missing, cut off, or does not fit the others; the message names it.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self.tokens = _open(self.prefix)
        self.lengths = self.tokens.sequence_lengths.copy()
        self.mask = _open(mask_prefix(prefix)) if _exists(mask_prefix(prefix)) else None
        if self.mask is not None and not np.array_equal(self.mask.sequence_lengths, self.lengths):
            raise ValueError(f"{mask_prefix(prefix)}.idx: documents differ from those of {prefix}.idx; {_REMEDY}")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Document:
        # copies: Megatron's reader unmaps its files when it goes, whoever still holds a view of them
        token_ids = self.tokens.get(index).astype(np.int64)
        mask = np.ones(len(token_ids), np.uint8) if self.mask is None else self.mask.get(index).copy()
        return Document(token_ids, mask)


def mask_prefix(prefix: str | Path) -> Path:
    """Prefix of the loss mask that belongs to `prefix`."""
    return Path(f"{prefix}{MASK_SUFFIX}")


def documents_exist(prefix: str | Path) -> bool:
    """True if a finished data set lies under `prefix`."""
    return _exists(Path(prefix))


def remove_documents(prefix: str | Path) -> None:
    """Delete a data set, index first, so that at no moment it looks complete and is not."""
    for path in (Path(prefix), mask_prefix(prefix)):
        for suffix in (".idx", ".bin"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def _exists(prefix: Path) -> bool:
    return Path(f"{prefix}.idx").exists() and Path(f"{prefix}.bin").exists()


def _open(prefix: Path) -> IndexedDataset:
    """Megatron's reader, after checks of what it would only assert, or notice in the middle of a run."""
    for suffix in (".idx", ".bin"):
        path = Path(f"{prefix}{suffix}")
        if not path.is_file() or not path.stat().st_size:
            raise ValueError(f"{path}: {'is empty' if path.is_file() else 'no such file'}; {_REMEDY}")
    index = Path(f"{prefix}.idx")
    if not _index_is_whole(index):
        raise ValueError(f"{index}: not a complete Megatron index ({index.stat().st_size} bytes); {_REMEDY}")
    dataset = IndexedDataset(str(prefix))
    expected = int(dataset.sequence_lengths.sum(dtype=np.int64)) * DType.size(dataset.index.dtype)
    found = Path(f"{prefix}.bin").stat().st_size
    if found != expected:
        raise ValueError(f"{prefix}.bin: holds {found} bytes, its index says {expected}; {_REMEDY}")
    return dataset


def _index_is_whole(path: Path) -> bool:
    """True if the header is Megatron's, version 1, and the file is as long as its counts say."""
    layout = struct.Struct("<9sQBQQ")  # header, version, dtype code, sequences, document borders
    with path.open("rb") as file:
        head = file.read(layout.size)
    if len(head) < layout.size:
        return False
    header, version, _, num_sequences, num_borders = layout.unpack(head)
    size = layout.size + num_sequences * (4 + 8) + num_borders * 8  # int32 lengths, int64 offsets, int64 borders
    return header == _INDEX_HEADER and version == 1 and path.stat().st_size == size


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
