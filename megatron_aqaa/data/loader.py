"""Micro-batches for Megatron's schedules, in an order that depends on the number of samples consumed alone.

Every rank reads through its own memory map of the same files, so nothing is broadcast between the tensor-, context-
and pipeline-parallel ranks that share a data-parallel rank: they ask for the same samples and get them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from megatron_aqaa.data.sample import Batch


def batches(
    dataset: Dataset[Batch],
    *,
    micro_batch_size: int,
    num_microbatches: int,
    consumed_samples: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Micro-batches of one data-parallel rank; `num_microbatches` in a row are its part of a global batch.

    A global batch is the next `micro_batch_size × num_microbatches × world_size` samples, whatever the split between
    ranks and micro-batches. The iterator ends with the last whole global batch.

    Args:
        dataset: From `build_dataset`.
        micro_batch_size: B.
        num_microbatches: Micro-batches a rank runs before each optimizer step.
        consumed_samples: Samples that all ranks together have used before; the data position of a checkpoint.
        rank: Data-parallel rank.
        world_size: Data-parallel size.
        device: Where the batches go.
        num_workers: Processes that read ahead; 0 reads in this one.

    Returns:
        Iterator over batches, each field of the samples with B in front: [B, S].

    Raises:
        ValueError: The sizes and the dataset do not fit together.
    """
    chunk = micro_batch_size * world_size
    num_samples = len(dataset)  # type: ignore[arg-type]
    _check(num_samples, chunk * num_microbatches, consumed_samples, rank, world_size)
    stop = num_samples - (num_samples - consumed_samples) % (chunk * num_microbatches)
    starts = range(consumed_samples + rank * micro_batch_size, stop, chunk)
    loader = DataLoader(
        dataset,
        batch_sampler=(list(range(start, start + micro_batch_size)) for start in starts),
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # or else it draws from the generator that dropout uses, and a resume differs
    )
    return ({name: value.to(device, non_blocking=True) for name, value in batch.items()} for batch in loader)


def _check(num_samples: int, global_batch_size: int, consumed_samples: int, rank: int, world_size: int) -> None:
    if global_batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"batch sizes must be at least 1 and rank {rank} must lie in 0 … {world_size - 1}")
    if num_samples < global_batch_size:
        raise ValueError(f"the dataset holds {num_samples} sequences, a global batch needs {global_batch_size}")
    if not 0 <= consumed_samples <= num_samples:
        raise ValueError(
            f"consumed_samples = {consumed_samples}, but the dataset holds {num_samples} sequences; build it with "
            f"num_samples for the whole run"
        )


def _collate(samples: list[Batch]) -> Batch:
    # a blend adds `dataset_id` to its samples, a single data set does not: the batch is the same either way
    names = [name for name in samples[0] if name != "dataset_id"]
    return {name: torch.stack([sample[name] for sample in samples]) for name in names}
