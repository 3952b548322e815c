"""Writing a checkpoint, here and now or in a forked process while training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica

from megatron_aqaa.checkpoint import retention
from megatron_aqaa.checkpoint.agreement import from_all_ranks, from_rank_zero
from megatron_aqaa.checkpoint.directories import latest_checkpoint, partial_directory, step_directory
from megatron_aqaa.checkpoint.file_digests import FileDigests, sync, write_record
from megatron_aqaa.checkpoint.forked import Forked
from megatron_aqaa.checkpoint.shard_writer import ShardStrategy, ShardWriter, Written


class PendingSave:
    """A checkpoint on its way to the disk; every rank makes one and calls `complete` on it.

    Args:
        run: directory of the run.
        step: optimizer steps done.
        state: Megatron sharded state dict.
        in_background: write `state` as it is now from a forked process; else `complete` writes it.

    Raises:
        OSError: the directory cannot be made.
    """

    def __init__(self, run: Path, step: int, state: dict[str, Any], *, in_background: bool) -> None:
        self.directory, self.step = step_directory(run, step), step
        self._run = run
        self._partial = from_rank_zero(lambda: _made(partial_directory(self.directory)))
        self._writer = ShardWriter(self._partial)
        if in_background:
            _bring_to_host(state)
        request = dist_checkpointing.save(
            state, str(self._partial), sharded_strategy=ShardStrategy(self._writer), async_sharded_save=True
        )
        self._finalize_fns = request.finalize_fns
        self._forked: Forked[Written] | None = Forked(self._writer.write) if in_background else None

    def is_written(self) -> bool:
        """Whether `complete` need not wait for this rank's shards."""
        return self._forked is not None and self._forked.is_done()

    def complete(self) -> Path:
        """Wait until all is on the disk and give the checkpoint its name; all ranks call this.

        Raises:
            OSError: a rank could not write; says which, why, and which checkpoint is the newest now.
        """
        self._writer.written = self._together(lambda: self._forked.result() if self._forked else self._writer.write())
        digests = {
            name: digest for rank in from_all_ranks(self._writer.written.digests) for name, digest in rank.items()
        }
        for finalize in self._finalize_fns:
            finalize()
        self._together(lambda: self._seal(digests) if torch.distributed.get_rank() == 0 else None)
        return self.directory

    def abandon(self) -> None:
        """Stop writing, on this rank alone; what is there never counts."""
        if self._forked is not None:
            self._forked.kill()

    def _together(self, act: Any) -> Any:
        """`act()` on each rank; if it fails on one, every rank raises the same."""
        result, problem = None, None
        try:
            result = act()
        except (OSError, RuntimeError) as error:
            problem = str(error)
        problems = from_all_ranks(problem)
        if any(problems):
            rank = next(rank for rank, problem in enumerate(problems) if problem)
            self._give_up(f"rank {rank}: {problems[rank]}")
        return result

    def _give_up(self, reason: str) -> None:
        if torch.distributed.get_rank() == 0:
            retention.remove([self._partial])
        newest = latest_checkpoint(self._run)
        raise OSError(
            f"{self.directory}: could not be written: {reason}. "
            + (f"The newest checkpoint is {newest.name}" if newest else "There is no checkpoint yet")
        )

    def _seal(self, digests: FileDigests) -> None:
        write_record(self._partial, digests)
        if self.directory.exists():  # a half one of an older version, or one that a resumed run comes by again
            retention.remove(retention.withdraw([self.directory]))
        self._partial.rename(self.directory)
        sync(self.directory.parent)


def save_checkpoint(run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` (sharded tensors and plain values) as the checkpoint of `step`; all ranks call this.

    Args:
        run: run directory.
        step: optimizer steps done.
        state: Megatron sharded state dict.
        keep: newest checkpoints to keep; older ones are removed after this one is complete.

    Raises:
        OSError: it cannot be written.
    """
    directory = PendingSave(run, step, state, in_background=False).complete()
    from_rank_zero(lambda: retention.remove(retention.withdraw(retention.outdated(run, keep))))
    return directory


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


def _bring_to_host(state: dict[str, Any]) -> None:
    """Copy what this rank writes to memory that a forked process can read; on the CPU there is nothing to copy."""
    on_device = [
        entry
        for entry in nested_values(state)
        if isinstance(entry, ShardedTensor | ShardedTensorFactory)
        and entry.data is not None
        and entry.data.device.type != "cpu"
        and is_main_replica(entry.replica_id)
    ]
    for entry in on_device:
        entry.data = entry.data.detach().to("cpu", non_blocking=True)  # pinned, kept by torch for the next save
    if on_device:
        torch.accelerator.synchronize()
