"""Writes a rank's shards of a `torch_dist` checkpoint, digests them on the way, and can do so in a forked process.

Torch's own writer does the writing. Megatron-Core 0.16.1's writer would start a process of 270 MB that outlives a
killed rank, two more for each save, and wait for ever for one of them that is killed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.state_dict_saver import (
    save_state_dict_async_finalize,
    save_state_dict_async_plan,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint import FileSystemWriter, SavePlan, SavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, _StoragePrefix
from torch.distributed.checkpoint.storage import WriteResult

from megatron_aqaa.checkpoint.file_digests import FileDigest, FileDigests


class DigestedFile(io.FileIO):
    """A new file that is written front to back.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self._path, self._sha256, self._num_bytes = path, hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """All of `data`; a single call to the system takes at most 2 GiB."""
        left = view = memoryview(data).cast("B")
        self._sha256.update(view)
        self._num_bytes += len(view)
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self.failure = OSError(error.errno, error.strerror, str(self._path))
            raise
        return len(view)

    def digest(self) -> FileDigest:
        """Of what was written; the file may be closed."""
        return FileDigest(self._num_bytes, self._sha256.hexdigest())


class DigestingFileSystem(FileSystem):
    """Torch's file system, of whose new files the digests are known."""

    def __init__(self) -> None:
        self.digests: FileDigests = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        """As torch's; digests are by the name of the file."""
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with DigestedFile(Path(path)) as file:
            try:
                yield file
            except Exception as error:
                raise file.failure or error from error  # torch.save speaks of positions when the disk is full
            self.digests[Path(path).name] = file.digest()


class Written(NamedTuple):
    """What a rank has written and synced."""

    results: list[WriteResult]
    digests: FileDigests


class ShardWriter(FileSystemWriter):
    """Torch's writer in steps: planned on all ranks together, written by each alone, finished together.

    Args:
        directory: of the checkpoint.
    """

    can_run_decentralized_global_plan = True  # Megatron: each rank names its own files

    def __init__(self, directory: Path) -> None:
        # One thread, no copying ahead: torch would do that with CUDA, which a forked process must not touch.
        super().__init__(directory, thread_count=1, per_thread_copy_ahead=0)
        self.fs = self._files = DigestingFileSystem()
        self.written = Written([], {})

    def prepare_decentralized_global_plan(self, local_plan: SavePlan) -> SavePlan:
        """Megatron's step between planning and writing."""
        return dataclasses.replace(local_plan, storage_data=_StoragePrefix(f"__{dist.get_rank()}_"))

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        """Megatron's step before writing: here it copies nothing."""
        self._plan, self._planner = plan, planner

    def write(self) -> Written:
        """Write this rank's shards from where they are in memory now; no other rank is needed."""
        if not self._plan.items:
            return Written([], {})
        return Written(self.write_data(self._plan, self._planner).wait(), self._files.digests)

    def retrieve_write_results(self) -> list[WriteResult]:
        """Megatron's step before `finish`; `written` must be set."""
        return self.written.results


class ShardStrategy(TorchDistSaveShardedStrategy):
    """Megatron's way to save `torch_dist`, through `writer`; to be passed to `dist_checkpointing.save`."""

    def __init__(self, writer: ShardWriter) -> None:
        super().__init__("torch_dist", 1)
        self.writer = writer

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> AsyncRequest:
        """Plan; the request's function writes, its `finalize_fns` write what makes the files a checkpoint."""
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, keep_only_main_replica=True)
        planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
        planned, *_ = save_state_dict_async_plan(
            mcore_to_pyt_state_dict(by_key, False), self.writer, None, 0, planner=planner
        )
        return AsyncRequest(self.writer.write, (), [lambda: save_state_dict_async_finalize(*planned)])
