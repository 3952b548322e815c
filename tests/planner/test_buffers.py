"""Padding of Megatron's buffers by hand-worked numbers; `test_state_bytes.py` compares with real ones."""

from __future__ import annotations

import pytest

from megatron_aqaa.planner.buffers import buckets, buffer_numel, shard_numel
from megatron_aqaa.planner.parameters import Parameter

PARAMETERS = [Parameter("a", 100), Parameter("b", 30), Parameter("c", 200)]


def test_parameters_start_at_64_and_the_bucket_ends_at_128_and_the_ranks() -> None:
    (bucket,) = buckets(PARAMETERS, 1)
    assert bucket.spans == ((0, 200), (256, 286), (320, 420))  # c, b, a
    assert bucket.stop == 512
    (of_three,) = buckets(PARAMETERS, 3)
    assert of_three.stop == 768  # 2 × 384


def test_shards_divide_the_bucket_not_the_parameters() -> None:
    laid_out = buckets(PARAMETERS, 2)
    assert [shard_numel(laid_out, 2, rank) for rank in range(2)] == [200, 130]  # up to 256, from 256


@pytest.mark.parametrize("num_shards", [1, 2, 3, 5, 8])
def test_every_element_is_owned_once(num_shards: int) -> None:
    laid_out = buckets(PARAMETERS, num_shards, bucket_size=150)
    assert sum(shard_numel(laid_out, num_shards, rank) for rank in range(num_shards)) == 330


def test_a_full_bucket_is_closed() -> None:
    first, second = buckets(PARAMETERS, 1, bucket_size=150)
    assert (first.start, first.stop, first.spans) == (0, 256, ((0, 200),))
    assert (second.start, second.stop, second.spans) == (256, 512, ((256, 286), (320, 420)))


def test_a_shared_embedding_is_alone_in_its_bucket() -> None:
    parameters = [Parameter("norm", 10), Parameter("embedding", 100, shared=True), Parameter("layer", 70)]
    spans = [bucket.spans for bucket in buckets(parameters, 1)]
    assert spans == [((0, 70),), ((128, 228),), ((256, 266),)]
    assert buffer_numel(buckets(parameters, 1)) == 384


def test_a_chunk_without_parameters_needs_nothing() -> None:
    assert buffer_numel(buckets([], 4)) == 0
