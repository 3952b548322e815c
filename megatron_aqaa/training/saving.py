"""Checkpoints of a run while it trains: begun when the loop says so, finished once written, old ones removed."""

from __future__ import annotations

import sys
from types import TracebackType

import torch

from megatron_aqaa.checkpoint.agreement import from_rank_zero, on_all_ranks
from megatron_aqaa.checkpoint.retention import Removal
from megatron_aqaa.checkpoint.saving import PendingSave
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.lm_state import TrainState

_ALIKE = (KeyboardInterrupt, FloatingPointError)
"""What every rank raises at the same step: the ranks are still in step, so that a save under way can be finished."""


class CheckpointSaver:
    """Saves `state` under `config.run`; use as a context manager, all ranks alike.

    With `training.async_save` a forked process writes what the state was, and training goes on. One save at a time: the
    next waits for the one before, and so does leaving, unless an error tears the ranks apart.

    Args:
        config: of the run.
        state: its model, optimizer, schedule and position, which the loop changes.
    """

    def __init__(self, config: TrainConfig, state: TrainState) -> None:
        self._run, self._loop, self._state = config.run, config.training, state
        self._pending: PendingSave | None = None
        self._removal = Removal(config.run)

    def __enter__(self) -> CheckpointSaver:
        from_rank_zero(self._removal.clear_leftovers)
        return self

    def save(self, wait: bool) -> None:
        """Save this step.

        Args:
            wait: come back when it is on the disk, even with `training.async_save`: before the end and on a stop.

        Raises:
            OSError: this or the save before could not be written; names rank and cause.
        """
        self._finish_late()
        in_background = self._loop.async_save and not wait
        self._pending = PendingSave(self._run, self._state.step, self._state.sharded(), in_background=in_background)
        if not in_background:
            self._complete()

    def poll(self) -> None:
        """Finish the save under way if every rank has written its part; to be called after each step.

        Raises:
            OSError: it could not be written; names rank and cause.
        """
        if self._pending is not None and on_all_ranks(self._pending.is_written()):
            self._complete()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pending is not None and (kind is None or issubclass(kind, _ALIKE)):
            self._complete()
        elif self._pending is not None:
            self._pending.abandon()
        self._removal.wait()

    def _finish_late(self) -> None:
        self.poll()
        if self._pending is not None:
            if torch.distributed.get_rank() == 0:
                print(
                    f"{self._pending.directory}: still being written at step {self._state.step}, so training waits; "
                    "raise training.save_interval",
                    file=sys.stderr,
                    flush=True,
                )
            self._complete()

    def _complete(self) -> None:
        pending, self._pending = self._pending, None
        assert pending is not None
        pending.complete()
        from_rank_zero(lambda: self._removal.remove_outdated(self._loop.keep_checkpoints, self._loop.keep_every))
