"""Where this process stands in a job."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """One process among those of a job.

    Attributes:
        rank: from 0, node by node.
        local_rank: from 0 on its node.
        nodes: names, in the order of ranks; each has as many processes.
        world_size: processes of the job.
        address: of the node where all meet.
        port: where rank 0 listens.
    """

    rank: int
    local_rank: int
    nodes: tuple[str, ...]
    world_size: int
    address: str
    port: int

    @classmethod
    def from_environment(cls, nodes: tuple[str, ...]) -> Place:
        """As the batch file and srun set it.

        Raises:
            ValueError: a variable is missing, or the processes are not spread evenly.
        """
        numbers, names = {}, ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
        for name in (*names, "MASTER_ADDR"):
            if name not in os.environ:
                raise ValueError(f"{name} is not set: start this from a batch file of tools/launch_slurm.py")
        for name in names:
            numbers[name] = int(os.environ[name])
        if not nodes or numbers["WORLD_SIZE"] % len(nodes):
            raise ValueError(f"{numbers['WORLD_SIZE']} processes are not spread evenly over {len(nodes)} nodes")
        return cls(
            numbers["RANK"],
            numbers["LOCAL_RANK"],
            nodes,
            numbers["WORLD_SIZE"],
            os.environ["MASTER_ADDR"],
            numbers["MASTER_PORT"],
        )

    @property
    def per_node(self) -> int:
        """Processes of each node."""
        return self.world_size // len(self.nodes)

    def node_of(self, rank: int) -> str:
        """Name of the node where `rank` runs."""
        return self.nodes[rank // self.per_node]
