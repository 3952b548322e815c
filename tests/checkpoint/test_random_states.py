"""Random states go with a checkpoint and come back where the layout is the same."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from megatron.core import dist_checkpointing
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.random_states import random_states, restore_random_states, stored_random_states
from megatron_aqaa.platform import ParallelConfig


def draws() -> list[float]:
    with get_cuda_rng_tracker().fork():
        tracked = float(torch.rand(()))
    return [random.random(), float(np.random.rand()), float(torch.rand(())), tracked]


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    platform.initialize(ParallelConfig(), seed=3)
    try:
        draws()
        dist_checkpointing.save(random_states(), str(tmp_path))
        wanted = draws()
        assert all(a != b for a, b in zip(draws(), wanted, strict=True))
        restore_random_states(dist_checkpointing.load(stored_random_states(tmp_path), str(tmp_path)))
        assert draws() == wanted
    finally:
        platform.shutdown()


def test_those_of_another_layout_are_left(tmp_path: Path) -> None:
    platform.initialize(ParallelConfig(), seed=3)
    try:
        states = random_states()
        states["random_states"].global_shape, states["random_states"].global_offset = (1, 2, 1), (0, 1, 0)
        states["random_states"].replica_id = 0
        dist_checkpointing.save(states, str(tmp_path), validate_access_integrity=False)
        assert stored_random_states(tmp_path) == {}
        before = torch.get_rng_state()
        restore_random_states({})
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        platform.shutdown()
