from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_aqaa.data.audio_loading.batch_plan import Batching, BatchPlan


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0.1, 10), min_size=8, max_size=80),
    st.integers(1, 8),
    st.integers(1, 6),
    st.integers(2, 9),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_recording_once_within_the_bounds(
    durations: list[float], world_size: int, buckets: int, size: int, shuffle: bool, epoch: int
) -> None:
    batching = Batching(max_batch_s=20, max_batch_size=size, num_buckets=buckets, shuffle=shuffle)
    plan = BatchPlan(np.array(durations), batching, world_size)
    batches = plan.epoch(epoch)

    assert sorted(np.concatenate(batches).tolist()) == list(range(len(durations)))
    assert len(batches) % world_size == 0
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert len(batch) * max(durations[i] for i in batch) <= 20


def test_epochs_differ_and_repeat() -> None:
    durations = np.random.default_rng(0).uniform(1, 10, 200)
    plan, again = (BatchPlan(durations, Batching(max_batch_s=60)) for _ in range(2))
    first, second = plan.epoch(0), plan.epoch(1)
    for one, other in zip(first, again.epoch(0), strict=True):
        np.testing.assert_array_equal(one, other)
    assert {tuple(b) for b in first}.isdisjoint({tuple(b) for b in second})
    other_seed = BatchPlan(durations, Batching(max_batch_s=60, seed=1)).epoch(0)
    assert [b.tolist() for b in other_seed] != [b.tolist() for b in first]


def test_buckets_save_padding() -> None:
    durations = np.random.default_rng(0).uniform(1, 20, 1000)

    def padding(buckets: int) -> float:
        batches = BatchPlan(durations, Batching(num_buckets=buckets)).epoch(0)
        padded = sum(len(b) * durations[b].max() for b in batches)
        return 1 - durations.sum() / padded

    assert padding(16) < 0.1 < 0.3 < padding(1)


def test_in_source_order_without_buckets_and_shuffling() -> None:
    plan = BatchPlan(np.array([3.0, 1.0, 2.0, 9.0, 1.0]), Batching(10, num_buckets=1, shuffle=False))
    assert [batch.tolist() for batch in plan.epoch(0)] == [[0, 1, 2], [3], [4]]
    assert [batch.tolist() for batch in plan.epoch(5)] == [[0, 1, 2], [3], [4]]


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="recording of 11.0 s and max_batch_s 10"):
        BatchPlan(np.array([11.0]), Batching(10))
    with pytest.raises(ValueError, match="2 recordings for 3 ranks"):
        BatchPlan(np.array([1.0, 1.0]), Batching(10), world_size=3)
    with pytest.raises(ValueError, match="3 batches of one recording each cannot be shared evenly by 2 ranks"):
        BatchPlan(np.ones(3), Batching(10, max_batch_size=1), world_size=2).epoch(0)
    with pytest.raises(ValueError, match="num_buckets 0 must be positive"):
        Batching(num_buckets=0)
