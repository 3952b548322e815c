"""What each rank feeds its model: micro-batches with group positions, cut for context parallelism, on the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.utils.data import Dataset

from megatron_aqaa import platform
from megatron_aqaa.data.loader import batches
from megatron_aqaa.data.sample import Batch
from megatron_aqaa.training.monitoring.stopwatch import Stopwatch
from megatron_aqaa.vocabulary import GROUP_SIZE, LINGUISTIC, SEMANTIC, Vocabulary

_WHOLE = ("document_ids", "pairs", "num_targets")

fetching = Stopwatch()
"""Time that this process has waited for micro-batches: one watch for all, like the process itself."""


def micro_batches(
    dataset: Dataset[Batch],
    vocabulary: Vocabulary,
    *,
    with_group_positions: bool,
    micro_batch_size: int,
    num_microbatches: int,
    consumed_samples: int,
) -> Iterator[Batch]:
    """This rank's micro-batches from a data position on; every virtual pipeline stage needs an iterator of its own.

    Every rank reads the same memory map, so nothing is broadcast: all tensor-parallel ranks and all pipeline stages
    have all fields.

    Args:
        dataset: from `megatron_aqaa.data`.
        vocabulary: id layout.
        with_group_positions: add `group_positions`, for a model with `group_position_embedding`.
        micro_batch_size: B of one forward pass.
        num_microbatches: micro-batches of this data-parallel rank in one optimizer step.
        consumed_samples: sequences of all ranks that were read before.
    """
    whole = batches(
        dataset,
        micro_batch_size=micro_batch_size,
        num_microbatches=num_microbatches,
        consumed_samples=consumed_samples,
        rank=parallel_state.get_data_parallel_rank(),
        world_size=parallel_state.get_data_parallel_world_size(),
    )

    def rank_part(batch: Batch) -> Batch:
        if with_group_positions:
            batch["group_positions"] = group_positions(batch["token_ids"], vocabulary)
        return {name: value.to(platform.device()) for name, value in _context_parallel_part(batch).items()}

    return fetching.timed(map(rank_part, whole))


def group_positions(token_ids: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Place of each token within its group `[L L S S S]`.

    Groups are counted from the start of each run of audio codes. The first run of a sequence may be the rest of a torn
    document (`packing: cut`) and begin within a group: it is counted back from its first group border, which shows as
    a linguistic code after a semantic one or as the end of the run.

    Args:
        token_ids: [B, S] int64, whole sequences: before they are cut for context parallelism.
        vocabulary: id layout.

    Returns:
        [B, S] int64 in 0 … 4, −1 outside audio.
    """
    kind = vocabulary.modality(token_ids)
    is_audio = kind > 0
    border = torch.zeros_like(is_audio)
    border[:, 1:] = ~is_audio[:, 1:] | ((kind[:, 1:] == LINGUISTIC) & (kind[:, :-1] == SEMANTIC))
    first_border = border.int().argmax(1, keepdim=True)  # 0 where there is none
    index = torch.arange(token_ids.shape[1]).expand_as(token_ids)
    run_start = index.masked_fill(is_audio, -1).cummax(1).values + 1
    counted_from = run_start.where(run_start > 0, first_border)
    return ((index - counted_from) % GROUP_SIZE).masked_fill(~is_audio, -1)


def _context_parallel_part(batch: Batch) -> Batch:
    """This rank's positions of each sequence.

    `document_ids` stay whole, since queries look at all keys, and so do fields with one entry a pair.
    """
    size, rank = parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
    return {
        name: value if name in _WHOLE else platform.zigzag_shard(value, dim=1, rank=rank, parts=size)
        for name, value in batch.items()
    }
