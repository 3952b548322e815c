"""Which documents a training sequence was made of."""

from __future__ import annotations

from typing import Any

from megatron.core.datasets.blended_dataset import BlendedDataset
from torch.utils.data import Dataset

from megatron_aqaa.data.documents import CutDocuments, WholeDocuments
from megatron_aqaa.data.sample import Batch


def source_of(dataset: Dataset[Batch], index: int) -> dict[str, Any]:
    """Data set and documents of sequence `index`, as `tools/inspect_dataset.py` numbers them.

    Args:
        dataset: from `build_dataset`.
        index: of the sequence.

    Returns:
        `data_set`: prefix; `documents`: numbers in it, in the order in which they lie in the sequence.
    """
    if isinstance(dataset, BlendedDataset):
        part = dataset.datasets[int(dataset.dataset_index[index])]
        return source_of(part, int(dataset.dataset_sample_index[index]))
    if isinstance(dataset, WholeDocuments):
        prefix, documents = dataset.dataset_path, dataset.packs[index]
    elif isinstance(dataset, CutDocuments):
        position = dataset.shuffle_index[index]
        first, last = (int(dataset.sample_index[place][0]) for place in (position, position + 1))
        prefix, documents = dataset.dataset.path_prefix, dataset.document_index[first : last + 1]
    else:
        raise TypeError(f"{type(dataset).__name__}: not a data set of megatron_aqaa.data.datasets")
    return {"data_set": str(prefix), "documents": [int(document) for document in documents]}
