"""Datasets for the training loop, built and blended by Megatron's `BlendedMegatronDatasetBuilder`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from torch.utils.data import Dataset

from megatron_aqaa.data.documents import CutDocuments, DocumentsConfig, WholeDocuments
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.sample import Batch, LossWeights
from megatron_aqaa.vocabulary import Vocabulary

_PACKINGS = {"cut": CutDocuments, "whole": WholeDocuments}
Blend = tuple[list[str], list[float] | None]


@dataclass(frozen=True)
class DataConfig:
    """What a run trains on.

    Attributes:
        train: Prefix of a data set → its weight in the blend, as a share of sequences. Weights need not sum to 1.
        sequence_length: S, positions of a sequence.
        packing: "cut" or "whole", see `megatron_aqaa.data.documents`.
        directory: Where prefixes start.
        validation: Prefixes of held-out data sets, each read once from beginning to end.
        text_loss_weight: Loss weight of a text target, a whole number.
        audio_loss_weight: Loss weight of an audio target, a whole number.
        audio_noise_ratio: Share of the audio codes outside the loss (spoken questions) that a random code of the same
            codebook replaces in training; with packing "whole".
        cache_directory: Where Megatron keeps its indices of "cut" data from run to run. Used under a process group
            (rank 0 writes, the others read); otherwise, and where it is None, indices are built in memory.
    """

    train: dict[str, float]
    sequence_length: int
    packing: Literal["cut", "whole"] = "cut"
    directory: Path = Path()
    validation: tuple[str, ...] = ()
    text_loss_weight: int = 1
    audio_loss_weight: int = 1
    audio_noise_ratio: float = 0.0
    cache_directory: Path | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("data.train: name at least one data set, as `prefix: weight`")
        for prefix, weight in self.train.items():
            if not weight > 0:
                raise ValueError(f"data.train: {prefix} has weight {weight}; weights must be above 0")
        if self.sequence_length < 1:
            raise ValueError(f"data.sequence_length = {self.sequence_length}: must be at least 1")
        weights = self.text_loss_weight, self.audio_loss_weight
        if min(weights) < 0 or not any(weights):
            raise ValueError("data.text_loss_weight and data.audio_loss_weight must be at least 0, and not both 0")
        if not 0 <= self.audio_noise_ratio < 1:
            raise ValueError(f"data.audio_noise_ratio = {self.audio_noise_ratio}: must lie in [0, 1)")
        if self.audio_noise_ratio and self.packing == "cut":
            raise ValueError("data.audio_noise_ratio has no effect with packing: cut; set it to 0")


def build_dataset(config: DataConfig, vocabulary: Vocabulary, num_samples: int, seed: int) -> Dataset[Batch]:
    """The training set: at least `num_samples` sequences, over as many epochs as that takes.

    Call it on every rank; all ranks get the same sequences. With or without torch.distributed.

    Raises:
        ValueError: A data set is missing or damaged, or a document does not fit; the message names it.
    """
    blend = (_prefixes(config, config.train), list(config.train.values()))
    return _build(config, vocabulary, [blend, None, None], num_samples, seed)


def build_validation_dataset(config: DataConfig, vocabulary: Vocabulary) -> Dataset[Batch]:
    """Every document of the validation sets once, in a fixed order, without noise.

    Raises:
        ValueError: As `build_dataset`; also if `config.validation` is empty.
    """
    if not config.validation:
        raise ValueError("data.validation: name at least one prefix")
    return _build(config, vocabulary, [None, (_prefixes(config, config.validation), None), None], None, seed=0)


def _prefixes(config: DataConfig, names: Iterable[str]) -> list[str]:
    return [str(config.directory / name) for name in names]


def _build(
    config: DataConfig, vocabulary: Vocabulary, blends: list[Blend | None], num_samples: int | None, seed: int
) -> Dataset[Batch]:
    for prefixes, _ in filter(None, blends):
        for prefix in prefixes:
            _check(prefix, config)
    megatron_config = DocumentsConfig(
        random_seed=seed,
        sequence_length=config.sequence_length,
        blend_per_split=blends,
        path_to_cache=_cache_path(config),
        tokenizer=_markers(vocabulary),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        drop_last_partial_validation_sequence=False,
        vocabulary=vocabulary,
        weights=LossWeights(config.text_loss_weight, config.audio_loss_weight),
        audio_noise_ratio=config.audio_noise_ratio,
    )
    sizes = [num_samples if blend else 0 for blend in blends]
    builder = BlendedMegatronDatasetBuilder(_PACKINGS[config.packing], sizes, lambda: True, megatron_config)
    with _quiet():
        datasets = builder.build()
    return next(dataset for dataset in datasets if dataset is not None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Megatron's warnings that it has no cache: that is a setting, not a fault."""
    logger = logging.getLogger("megatron.core.datasets")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check(prefix: str, config: DataConfig) -> None:
    # on every rank and before Megatron's barriers: an error between them would leave the other ranks waiting
    lengths, room = Documents(prefix).lengths, config.sequence_length + 1
    unfit = np.flatnonzero((lengths < 2) | (lengths > room))
    if config.packing == "whole" and len(unfit):
        raise ValueError(
            f"{prefix}: document {unfit[0]} has {lengths[unfit[0]]} tokens; {len(unfit)} of {len(lengths)} documents "
            f"do not have 2 … {room}. Set data.sequence_length to at least {lengths.max() - 1}, or prepare the data "
            f"with max_tokens: {room}"
        )


def _cache_path(config: DataConfig) -> str:
    # Without a process group BlendedDataset still asks torch.distributed for its rank if it has a cache. An empty
    # path means no cache; None would make Megatron's GPT dataset write one beside the data.
    usable = config.cache_directory is not None and torch.distributed.is_initialized()
    return str(config.cache_directory) if usable else ""


def _markers(vocabulary: Vocabulary) -> SimpleNamespace:
    """The part of a tokenizer that Megatron's datasets look at."""
    identity = {"vocabulary": str(vocabulary)}
    return SimpleNamespace(
        vocab_size=vocabulary.size, eod=vocabulary.eot, pad=vocabulary.pad, unique_identifiers=identity
    )
