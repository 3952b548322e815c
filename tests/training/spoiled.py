"""A task whose losses go wrong at chosen steps, and which looks at what each step left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_aqaa.training.lm_state import TrainState
from megatron_aqaa.training.loop import Task
from megatron_aqaa.training.monitoring.guards import Judge, always
from megatron_aqaa.training.monitoring.telemetry import Result


class SpoiledTask:
    """`task`, with its token losses multiplied at some steps.

    Args:
        task: the real one.
        state: of the run.
        factors: steps done before → factor.
        on_rank: the one data-parallel rank that is hit; None: all.
        signal_at: steps done before a stop signal is sent to this process, in a step.

    Attributes:
        changed: steps done before → whether the step changed weights, optimizer or schedule on this rank.
    """

    validates_at_start = False

    def __init__(
        self,
        task: Task,
        state: TrainState,
        factors: Mapping[int, float],
        on_rank: int | None = None,
        signal_at: int | None = None,
    ) -> None:
        self.task, self.state, self.factors, self.on_rank, self.signal_at = task, state, factors, on_rank, signal_at
        self.changed: dict[int, bool] = {}

    def step(self, judge: Judge = always) -> Result:
        number, before = self.state.step, snapshot(self.state)
        if number == self.signal_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        with ExitStack() as hooks:
            if number in self.factors and self.on_rank in (None, parallel_state.get_data_parallel_rank()):
                for chunk in self.state.model_chunks:
                    hooks.callback(self._spoil(chunk, self.factors[number]).remove)
            result = self.task.step(judge)
        after = snapshot(self.state)
        self.changed[number] = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return result

    def validation(self) -> dict[str, float]:
        return self.task.validation()

    def source(self, sequence: int) -> dict[str, Any]:
        return self.task.source(sequence)

    @staticmethod
    def _spoil(chunk: Any, factor: float) -> Any:
        """Only where losses come out."""
        return chunk.register_forward_hook(lambda _, __, out: out * factor if chunk.module.post_process else out)


def snapshot(state: TrainState) -> list[torch.Tensor]:
    """Copies of all that a step may change on this rank."""
    return [torch.as_tensor(value).detach().clone() for value in _values(state)]


def _values(state: TrainState) -> Iterator[Any]:
    for chunk in state.model_chunks:
        yield from chunk.parameters()
    yield state.scheduler.num_steps
    for part in getattr(state.optimizer, "chained_optimizers", [state.optimizer]):
        for group in part.param_groups:
            yield from (group["lr"], group["step"])
            for parameter in group["params"]:
                yield from (parameter, *part.optimizer.state[parameter].values())
