"""The two ways in which documents fill sequences of S positions, as Megatron datasets.

*cut*: all documents in one endless stream, cut every S tokens: no padding, but documents are torn at the borders.
Right where documents are longer than a sequence. *whole*: whole documents packed into sequences: a little padding,
nothing torn. Right for conversations. In both, `document_ids` keep the documents of a sequence apart in attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split
from numpy.typing import NDArray

from megatron_aqaa.data.indexed import Document, Documents
from megatron_aqaa.data.sample import Batch, LossWeights, SampleBuilder, replace_codes
from megatron_aqaa.ops.index import packing_plan
from megatron_aqaa.vocabulary import Vocabulary


@dataclass
class DocumentsConfig(GPTDatasetConfig):
    """Megatron's configuration with what our datasets need beside it.

    Attributes:
        vocabulary: Id layout.
        weights: Loss weight of a target, by modality.
        audio_noise_ratio: See `replace_codes`; whole documents of the training split only.
    """

    vocabulary: Vocabulary = Vocabulary()
    weights: LossWeights = LossWeights()
    audio_noise_ratio: float = 0.0

    def sample(self) -> SampleBuilder:
        """An empty sequence."""
        return SampleBuilder(self.sequence_length, self.vocabulary, self.weights)


class CutDocuments(GPTDataset):
    """Megatron's GPT dataset, with document borders kept and the loss mask of the documents applied."""

    config: DocumentsConfig

    def __init__(self, tokens: IndexedDataset, dataset_path: str, *rest: Any) -> None:
        # Megatron files its index cache under a hash of this name: data that was written anew gets a new cache
        super().__init__(tokens, f"{dataset_path} {_version(dataset_path)}", *rest)
        self.mask = Documents(dataset_path).mask

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: GPTDatasetConfig) -> IndexedDataset:
        """Token ids under `dataset_path`."""
        return Documents(dataset_path).tokens

    def __getitem__(self, index: int | None) -> Batch:
        sample = self.config.sample()
        parts = list(self._parts(index or 0))
        for part in parts:
            sample.add(part, keep_last=part is not parts[-1])
        return sample.finish()

    def _parts(self, index: int) -> Iterator[Document]:
        """Stretches of documents that make up sequence `index`, S + 1 tokens in all."""
        position = self.shuffle_index[index]
        (first, start), (last, stop) = self.sample_index[position].tolist(), self.sample_index[position + 1].tolist()
        for order in range(first, last + 1):
            document = int(self.document_index[order])
            begin = start if order == first else 0
            end = stop + 1 if order == last else int(self.dataset.sequence_lengths[document])
            token_ids = self.dataset.get(document, begin, end - begin).astype(np.int64)
            everywhere = np.ones(len(token_ids), np.uint8)
            mask = everywhere if self.mask is None else self.mask.get(document, begin, end - begin)
            yield Document(token_ids, mask)


class WholeDocuments(MegatronDataset):
    """Whole documents packed into sequences by best fit, in a new order and new packs every epoch.

    Sequence i is a function of (seed, i): which documents it holds, and which codes `audio_noise_ratio` replaces. The
    plan is computed in memory by every rank (1 s for a million documents), so there is no cache to go stale.
    Every document must have 2 … S + 1 tokens.
    """

    config: DocumentsConfig
    dataset: Documents

    def __init__(
        self,
        dataset: Documents,
        dataset_path: str,
        indices: NDArray[np.int32],
        num_samples: int | None,
        index_split: Split,
        config: DocumentsConfig,
    ) -> None:
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        self.packs: list[NDArray[np.int64]] = []
        epoch = 0
        while not self.packs or (num_samples is not None and len(self.packs) < num_samples):
            self.packs += self._pack(epoch)
            epoch += 1

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: DocumentsConfig) -> Documents:
        """Documents under `dataset_path`."""
        return Documents(dataset_path)

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: Documents) -> int:
        """Number of documents."""
        return len(low_level_dataset)

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> Batch:
        sample = self.config.sample()
        random = np.random.default_rng((self.config.random_seed, index))
        ratio = self.config.audio_noise_ratio if self.index_split is Split.train else 0.0
        for document in map(self.dataset.__getitem__, self.packs[index]):
            inputs = replace_codes(document, ratio, self.config.vocabulary, random) if ratio else None
            sample.add(document, inputs=inputs)
        return sample.finish()

    def _pack(self, epoch: int) -> list[NDArray[np.int64]]:
        """Document numbers of every sequence of an epoch."""
        random = np.random.default_rng((self.config.random_seed, epoch))
        documents = random.permutation(self.indices)
        # n tokens take n − 1 positions; the order among equal lengths decides who shares a sequence
        lengths = self.dataset.lengths[documents].astype(np.int64) - 1
        offsets, order = packing_plan(lengths, self.config.sequence_length)
        packs = np.split(documents[order], offsets[1:-1])
        return [packs[pack] for pack in random.permutation(len(packs))]  # the plan has the fullest sequences first


def _version(prefix: str) -> str:
    """Tells one writing of a data set from the next."""
    index = Path(f"{prefix}.idx").stat()
    return f"{index.st_size}-{index.st_mtime_ns}"
