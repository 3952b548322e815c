"""What layers share is made once per micro-batch, and anew for the next one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_aqaa.model.micro_batch_cache import MicroBatchCache

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Counter:
    """Counts how often something is made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, query: Tensor, num_keys: int, document_ids: Tensor | None) -> int:
        self.made += 1
        return self.made


def query(length: int = 4, batch: int = 2, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(length, batch, 2, 8, dtype=dtype, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_layers_share_and_changes_of_the_ids_are_noticed(device: str) -> None:
    cache, ids = MicroBatchCache(Counter()), torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]], device=device)
    q = query(device=device)
    assert cache(q, 4, ids) == 1
    assert cache(q + 1.0, 4, ids) == 1  # the next layer
    assert cache(q, 4, ids.detach()) == 1  # recomputation
    ids[0, 1] = 1  # in place: the tensor object stays
    assert cache(q, 4, ids) == 2
    assert cache(q, 4, torch.zeros_like(ids)) == 3
    assert cache(q, 4, None) == 4
    assert cache(q, 4, None) == 4


def test_equal_ids_in_another_tensor_share_on_the_cpu() -> None:
    cache, ids = MicroBatchCache(Counter()), torch.tensor([[0, 0, 1, 1]])
    assert cache(query(batch=1), 4, ids) == cache(query(batch=1), 4, ids.clone())


def test_changes_of_shape_and_dtype_are_noticed() -> None:
    cache = MicroBatchCache(Counter())
    cache(query(), 4, None)
    for number, (q, num_keys) in enumerate(
        [(query(), 5), (query(5), 5), (query(5, 1), 5), (query(5, 1, torch.float64), 5)], start=2
    ):
        assert cache(q, num_keys, None) == number


@pytest.mark.parametrize("device", DEVICES)
def test_what_inference_made_serves_training(device: str) -> None:
    cache = MicroBatchCache(lambda query, num_keys, document_ids: query.new_ones(2) * 1.0)
    with torch.inference_mode():
        cache(query(device=device), 4, torch.zeros(2, 4, device=device))
        kept = cache(query(device=device), 4, None)
    (kept * torch.ones(2, device=device, requires_grad=True)).sum().backward()
