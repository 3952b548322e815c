"""Where a process runs and how it is joined with others; the only room that names `torch.cuda`.

Light on purpose: Megatron-Core is imported by `initialize`, not by this package, so that tools which only want
`device()` start quickly.
"""

from megatron_aqaa.platform.device import device, local_processes
from megatron_aqaa.platform.memory import keep_freed_memory
from megatron_aqaa.platform.parallel import ParallelConfig, initialize, shutdown
from megatron_aqaa.platform.replicas import Replicas
from megatron_aqaa.platform.zigzag import zigzag_order, zigzag_shard

__all__ = [
    "ParallelConfig",
    "Replicas",
    "device",
    "initialize",
    "keep_freed_memory",
    "local_processes",
    "shutdown",
    "zigzag_order",
    "zigzag_shard",
]
