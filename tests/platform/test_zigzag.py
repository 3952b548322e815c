"""The order in which a sequence is cut."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa.platform import zigzag_order, zigzag_shard


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_zigzag_pairs_an_early_with_a_late_chunk(parts: int) -> None:
    order = zigzag_order(parts)
    assert sorted(order) == list(range(2 * parts))
    assert {order[2 * rank] + order[2 * rank + 1] for rank in range(parts)} == {2 * parts - 1}
    sequence = torch.arange(24).reshape(2, 12).repeat(1, parts)
    shards = [zigzag_shard(sequence, 1, rank, parts) for rank in range(parts)]
    if parts > 1:
        chunks = sequence.chunk(2 * parts, 1)
        assert torch.equal(torch.cat(shards, 1), torch.cat([chunks[index] for index in order], 1))
    else:
        assert shards[0] is sequence


def test_a_length_that_cannot_be_cut_is_named() -> None:
    with pytest.raises(ValueError, match="length 10 must be a multiple of .* = 4"):
        zigzag_shard(torch.zeros(1, 10), 1, 0, 2)
