"""Random states in a checkpoint: a run that continues at the same parallel layout draws the same numbers.

No model here draws any while it trains (no dropout, data by index), so another layout, for which these states mean
nothing, simply goes on with its own.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import load_sharded_metadata
from megatron.core.tensor_parallel import random as megatron_random

KEY = "random_states"


def random_states() -> dict[str, ShardedObject]:
    """Sharded state of every generator of this rank, named by its place in the layout."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": megatron_random._get_cuda_rng_state(),
        "tracker": megatron_random.get_cuda_rng_tracker().get_states(),
    }
    sizes = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    )
    place = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )
    return {KEY: ShardedObject(KEY, states, sizes, place)}


def stored_random_states(checkpoint: Path) -> dict[str, ShardedObject]:
    """What to load: `random_states` if `checkpoint` was written at this layout, else nothing."""
    states = random_states()
    return states if states[KEY].unique_key in load_sharded_metadata(str(checkpoint)) else {}


def restore_random_states(loaded: dict[str, Any]) -> None:
    """Set every generator as it was, if `loaded` says how."""
    states = loaded.get(KEY)
    if states is None:
        return
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    megatron_random._set_cuda_rng_state(states["device"])
    megatron_random.get_cuda_rng_tracker().set_states(states["tracker"])
