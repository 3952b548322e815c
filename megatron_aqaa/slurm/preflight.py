"""A look at every node of a job before its first step: what is wrong, and on which node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from megatron_aqaa.platform.device import has_gpu, select_device
from megatron_aqaa.slurm.answers import Answers, meet
from megatron_aqaa.slurm.config import PreflightConfig
from megatron_aqaa.slurm.network import Network, measure
from megatron_aqaa.slurm.node_checks import gpu_problems, path_problems
from megatron_aqaa.slurm.place import Place


@dataclass(frozen=True)
class Preflight:
    """What all processes found; the same on each.

    Attributes:
        problems: each begins with the name of its node; empty if the job can start.
        network: measured where nothing was wrong before.
    """

    problems: list[str]
    network: Network | None = None


def look(
    place: Place, num_gpus: int, reads: Sequence[str], writes: Sequence[str], limits: PreflightConfig
) -> Preflight:
    """Check this process's node, then the network between all; every process of the job calls this.

    Args:
        place: of this process.
        num_gpus: each node must have.
        reads: paths that each node must be able to read.
        writes: directories that each node must be able to write into.
        limits: what else.

    Raises:
        ValueError: rank 0 cannot be reached.
    """
    store = meet(place, limits.timeout_s)
    answers = Answers(store, place, limits.timeout_s)
    problems = gpu_problems(num_gpus, limits.min_free_gpu_memory_gb)
    if place.local_rank == 0:
        problems += path_problems(reads, writes, limits)
    found = answers.exchange("nodes", problems)
    if found or place.world_size == 1:  # a process that is not there would make the others wait in a collective
        return Preflight(found)
    network, failure = _measured(store, place, limits)
    found = answers.exchange("network", failure)
    if network is None:
        return Preflight(found)
    return Preflight(found or network.problems(limits), network)


def _measured(store: dist.Store, place: Place, limits: PreflightConfig) -> tuple[Network | None, list[str]]:
    """The network, or why it could not be measured from here."""
    select_device()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpu() else "gloo",
            store=dist.PrefixStore("network", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=limits.timeout_s),
        )
        network = measure(place, limits.message_mib)
    except RuntimeError as error:
        return None, [f"the network could not be measured: {str(error).splitlines()[0]}"]
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return network, []
