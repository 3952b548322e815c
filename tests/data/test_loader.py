from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from megatron_aqaa.data.datasets import DataConfig, build_dataset
from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.data.loader import batches
from megatron_aqaa.data.sample import FIELDS, Batch
from megatron_aqaa.vocabulary import Vocabulary


class Numbered(Dataset[Batch]):
    """Sample i holds the number i in every field, and a field that batches leave out."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Batch:
        return {name: torch.full((3,), index) for name in (*FIELDS, "dataset_id")}


def read(size: int, **settings: int) -> list[list[int]]:
    """Sample numbers of every micro-batch."""
    return [batch["token_ids"][:, 0].tolist() for batch in batches(Numbered(size), **settings)]


@given(
    micro_batch_size=st.integers(1, 4),
    num_microbatches=st.integers(1, 3),
    world_size=st.integers(1, 3),
    num_batches=st.integers(1, 4),
    rest=st.integers(0, 50),
    consumed_batches=st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_ranks_and_micro_batches_share_out_the_global_batches(
    micro_batch_size: int, num_microbatches: int, world_size: int, num_batches: int, rest: int, consumed_batches: int
) -> None:
    global_batch_size = micro_batch_size * num_microbatches * world_size
    size = num_batches * global_batch_size + rest % global_batch_size
    consumed = min(consumed_batches, num_batches) * global_batch_size
    ranks = [
        read(
            size,
            micro_batch_size=micro_batch_size,
            num_microbatches=num_microbatches,
            consumed_samples=consumed,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    assert all(
        len(rank) == (num_batches * global_batch_size - consumed) // (micro_batch_size * world_size) for rank in ranks
    )
    for first in range(0, len(ranks[0]), num_microbatches):
        together = sorted(
            i for rank in ranks for micro_batch in rank[first : first + num_microbatches] for i in micro_batch
        )
        start = consumed + first * micro_batch_size * world_size
        assert together == list(range(start, start + global_batch_size))


@given(consumed=st.integers(0, 19))
@settings(max_examples=20, deadline=None)
def test_a_resume_at_any_sample_continues_the_sequence(consumed: int) -> None:
    numbers = [
        i for batch in read(24, micro_batch_size=1, num_microbatches=1, consumed_samples=consumed) for i in batch
    ]
    assert numbers == list(range(consumed, 24))


def test_resumed_batches_of_real_data_are_the_following_batches(tmp_path: Path) -> None:
    vocabulary = Vocabulary.for_text(160)
    with DocumentWriter(tmp_path / "a", vocabulary) as writer:
        for index in range(50):
            writer.add([1, 10 + index, 3])
    config = DataConfig(train={str(tmp_path / "a"): 1.0}, sequence_length=4, packing="whole")
    sizes = {"micro_batch_size": 2, "num_microbatches": 2}
    whole = list(batches(build_dataset(config, vocabulary, 40, seed=1), **sizes))
    assert [{name: value.shape for name, value in batch.items()} for batch in whole[:1]] == [
        dict.fromkeys(FIELDS, (2, 4))
    ]
    rest = list(batches(build_dataset(config, vocabulary, 40, seed=1), consumed_samples=12, **sizes))
    assert len(rest) == len(whole) - 6
    for first, second in zip(whole[6:], rest, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in FIELDS)


def test_reading_draws_nothing_from_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    read(8, micro_batch_size=2, num_microbatches=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_worker_processes_give_the_same_batches() -> None:
    sizes = {"micro_batch_size": 2, "num_microbatches": 2, "consumed_samples": 4}
    assert read(12, num_workers=1, **sizes) == read(12, **sizes)


def test_only_the_four_fields_are_batched() -> None:
    batch = next(iter(batches(Numbered(4), micro_batch_size=2, num_microbatches=1)))
    assert tuple(batch) == FIELDS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"micro_batch_size": 0}, "at least 1"),
        ({"rank": 2}, r"rank 2 must lie in 0 … 0"),
        ({"micro_batch_size": 30}, "holds 24 sequences, a global batch needs 30"),
        ({"consumed_samples": 25}, "consumed_samples = 25, but the dataset holds 24"),
        ({"consumed_samples": -1}, "consumed_samples = -1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_at_once(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(Numbered(24), **{"micro_batch_size": 2, "num_microbatches": 1, **settings})
