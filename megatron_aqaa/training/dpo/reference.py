"""The reference that the policy is held to: log-probabilities computed once, or its weights at hand on the CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.checkpoint import store
from megatron_aqaa.checkpoint.agreement import from_rank_zero
from megatron_aqaa.data.preferences import PairRows, PreferencePairs
from megatron_aqaa.training.dpo.reference_cache import check_key, read_table, write_table
from megatron_aqaa.training.dpo.step import answer_logps
from megatron_aqaa.training.loop import any_rank
from megatron_aqaa.training.optimizer import gather_weights
from megatron_aqaa.training.progress import Progress
from megatron_aqaa.training.schedule import Window
from megatron_aqaa.training.stop import StopRequest
from megatron_aqaa.whole_file import write_json

_WRITE_INTERVAL_S = 60.0


class Reference(Protocol):
    """Adds to batches what the reference thinks of their answers."""

    def attach(self, window: Window) -> Window:
        """The window with `reference_logps` [B, P, 2] in every batch that a loss is computed of."""


class PrecomputedReference:
    """Looks log-probabilities up.

    Args:
        table: [pairs, 2].
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table.to(platform.device())

    def attach(self, window: Window) -> Window:
        """As `Reference.attach`; places without a pair get those of another, which nobody reads."""
        return [[{**batch, "reference_logps": self.table[batch["pairs"]]} for batch in own] for own in window]


class SwappedReference:
    """Computes log-probabilities with the reference's weights in the policy's place."""

    def __init__(self, weights: ReferenceWeights, shape: tuple[int, int]) -> None:
        self.weights, self.shape = weights, shape

    def attach(self, window: Window) -> Window:
        """As `Reference.attach`; the other pipeline stages have none and need none."""
        with self.weights.in_place():
            logps = answer_logps(self.weights.model_chunks, window, self.shape)
        if not logps:
            return window
        return [[{**b, "reference_logps": found} for b, found in zip(own, logps, strict=True)] for own in window]


class ReferenceWeights:
    """The weights of a checkpoint on the CPU, in the model's dtype, to stand in for those of the policy.

    The parameters of a model under Megatron's distributed optimizer are views into its buffers, so values are copied
    in and out and no tensor is replaced. The optimizer's own copies never change.

    Args:
        model_chunks: the policy; as it was when this returns.
        checkpoint: run or checkpoint directory.

    Raises:
        ValueError: no such checkpoint, or it does not fit the model.
    """

    def __init__(self, model_chunks: list[Any], checkpoint: Path) -> None:
        self.model_chunks = model_chunks
        self.parameters = [parameter.data for chunk in model_chunks for parameter in chunk.parameters()]
        self._policy, self._reference = self._empty(), self._empty()
        _copy(self.parameters, to=self._policy)
        try:
            store.load_model(model_chunks, checkpoint)
            _copy(self.parameters, to=self._reference)
        finally:
            _copy(self._policy, to=self.parameters)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model is the reference; afterwards it is the policy again, to the last bit."""
        gather_weights(self.model_chunks)  # else a process would put aside stale parts of what others own
        _copy(self.parameters, to=self._policy)
        _copy(self._reference, to=self.parameters)
        try:
            yield
        finally:
            _copy(self._policy, to=self.parameters)

    def _empty(self) -> list[Tensor]:
        return [torch.empty_like(value, device="cpu", pin_memory=value.is_cuda) for value in self.parameters]


def precomputed_table(
    path: Path,
    key: dict[str, Any],
    pairs: PreferencePairs,
    weights: Callable[[], ReferenceWeights],
    windows: Callable[[PairRows], Iterable[Window]],
    shape: tuple[int, int],
    global_batch_size: int,
) -> Tensor:
    """The reference's log-probabilities of all used pairs, [pairs, 2]: from `path`, else computed and kept there.

    All ranks call this. What is there already is not computed again, so an interrupted pass goes on where it last
    wrote: every minute, and on a stop signal.

    Args:
        path: of the table.
        key: what it is valid for.
        pairs: to compute it for.
        weights: loads the reference; called if something is missing.
        windows: reads rows of pairs, each data-parallel rank its own.
        shape: (micro-batch size, sequence length).
        global_batch_size: rows in a window.

    Raises:
        ValueError: `path` holds the log-probabilities of something else; says of what.
        KeyboardInterrupt: stopped by a signal, after writing.
    """
    table = from_rank_zero(lambda: read_table(path, key, len(pairs)))
    missing = pairs.used[table[torch.from_numpy(pairs.used)].isnan().any(1).numpy()]
    if not len(missing):
        return table
    rows = PairRows(pairs, missing, seed=0, multiple_of=global_batch_size)
    writes = torch.distributed.get_rank() == 0
    written_s = time.monotonic()
    reference = weights()
    with _watched(f"reference, {path.stem}", len(rows)) as (stop, progress), reference.in_place():
        for index, window in enumerate(windows(rows), start=1):
            _fill(table, window, answer_logps(reference.model_chunks, window, shape))
            progress.update(index * global_batch_size)
            stopping = any_rank(stop.requested)
            if writes and (stopping or index * global_batch_size == len(rows) or _is_due(written_s)):
                write_table(path, key, table)
                written_s = time.monotonic()
            if stopping:
                raise KeyboardInterrupt("stopped while computing reference log-probabilities; what is done is kept")
    return table


def keep_identity(path: Path, key: dict[str, Any]) -> None:
    """Hold a run to the reference it began with, where no table says which it was; all ranks call this.

    Raises:
        ValueError: the run began with another one; says what differs.
    """

    def check_or_write() -> None:
        if path.exists():
            check_key(path, json.loads(path.read_text()), key)
            return
        write_json(path, key)

    from_rank_zero(check_or_write)


@contextmanager
def _watched(title: str, total: int) -> Iterator[tuple[StopRequest, Progress]]:
    silent = torch.distributed.get_rank() != 0
    with StopRequest() as stop, Progress(title, total, silent=silent) as progress:
        yield stop, progress


def _is_due(written_s: float) -> bool:
    return time.monotonic() - written_s > _WRITE_INTERVAL_S


def _fill(table: Tensor, window: Window, logps: list[Tensor]) -> None:
    """Put the log-probabilities of a window, of all data-parallel ranks, into `table` on every rank."""
    found = torch.zeros(len(table), 3, dtype=table.dtype, device=platform.device())  # the third column counts
    for batch, values in zip(window[0], logps, strict=False):  # no values but on the last stage
        there = batch["pairs"] >= 0
        found[batch["pairs"][there]] = torch.nn.functional.pad(values[there].to(found.dtype), (0, 1), value=1.0)
    torch.distributed.all_reduce(found, group=parallel_state.get_data_parallel_group())
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    torch.distributed.broadcast(found, last, group=parallel_state.get_pipeline_model_parallel_group())
    done = (found[:, 2] > 0).cpu()
    table[done] = found[:, :2].cpu()[done]


@torch.no_grad()
def _copy(values: Sequence[Tensor], *, to: Sequence[Tensor]) -> None:
    for value, place in zip(values, to, strict=True):
        place.copy_(value)
