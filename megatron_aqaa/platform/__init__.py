"""Where a process runs and how it is joined with others; the only room that names `torch.cuda`.

Light on purpose: Megatron-Core is imported by `initialize`, not by this package, so that tools which only want
`device()` start quickly.
"""

import warnings

from megatron_aqaa.platform.device import device, local_processes
from megatron_aqaa.platform.memory import keep_freed_memory
from megatron_aqaa.platform.parallel import ParallelConfig, initialize, shutdown, zigzag_order, zigzag_shard

# Megatron-Core says at import, once per module, that optional parts are missing (they are extras of this project),
# recommends an environment variable that only a GPU reads, and uses names that torch 2.13 renames.
for _message in (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "When using (async grad allreduce|sequence parallelism)",
    "`torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
):
    warnings.filterwarnings("ignore", message=_message)

__all__ = [
    "ParallelConfig",
    "device",
    "initialize",
    "keep_freed_memory",
    "local_processes",
    "shutdown",
    "zigzag_order",
    "zigzag_shard",
]
