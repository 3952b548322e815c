"""What a run tells of itself: console, `log.jsonl`, boards. Every field is described in docs/monitoring.md."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Protocol

import torch

from megatron_aqaa.platform.device import device_name, peak_memory_bytes
from megatron_aqaa.training.lm_batch import fetching
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.lm_state import TrainState
from megatron_aqaa.training.monitoring.flops import peak_tflops, step_flops
from megatron_aqaa.training.monitoring.guards import Guards
from megatron_aqaa.training.monitoring.skipped import without_nan
from megatron_aqaa.training.monitoring.stragglers import GIB, Stragglers
from megatron_aqaa.training.monitoring.trackers import numbers, open_trackers
from megatron_aqaa.training.progress import Progress
from megatron_aqaa.vocabulary import Vocabulary


class Result(Protocol):
    """What one step reports; the same on every rank."""

    @property
    def loss(self) -> float:
        """As minimised."""

    @property
    def grad_norm(self) -> float:
        """Before clipping."""

    @property
    def updated(self) -> bool:
        """False where the step was skipped."""

    @property
    def values(self) -> dict[str, float]:
        """What is logged beside these; validation has it too."""

    @property
    def counts(self) -> dict[str, int]:
        """What is logged of the batch."""

    @property
    def targets(self) -> int:
        """Positions that went through the output head."""

    @property
    def audio_seconds(self) -> float | None:
        """Length of the speech in the batch, if somebody counted it."""


class Telemetry:
    """Takes the time of every step and passes the numbers on; rank 0 alone writes. Use as a context manager.

    Args:
        config: of the run.
        state: of the run, at the step that it continues after.
        vocabulary: id layout.
    """

    def __init__(self, config: TrainConfig, state: TrainState, vocabulary: Vocabulary) -> None:
        self.config, self.vocabulary = config, vocabulary
        self.writes = torch.distributed.get_rank() == 0
        log_path = config.run / "log.jsonl" if self.writes else None
        self.progress = Progress(config.run.name, config.training.steps, state.step, log_path, silent=not self.writes)
        self.trackers = open_trackers(config, state.step) if self.writes else []
        self.stragglers = Stragglers(state.model_chunks)
        self.peak_tflops = config.training.peak_tflops or peak_tflops(device_name())

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)
        for tracker in self.trackers:
            tracker.close()

    def begin(self) -> None:
        """A step begins."""
        self.started_s, self.fetched_s = time.monotonic(), fetching.seconds

    def report(self, step: int, result: Result, learning_rate: float, guards: Guards) -> None:
        """A step is finished; all ranks call this, since once an interval they are compared."""
        seconds, data_wait_s = time.monotonic() - self.started_s, fetching.seconds - self.fetched_s
        self.stragglers.add(data_wait_s)
        of_ranks = self._compare_ranks() if step % self.config.training.report_interval == 0 else {}
        if not self.writes:
            return
        rates = self._rates(result, seconds)
        self.progress.update(step, loss=result.loss, **result.values, **_shown(rates))
        record = {
            **{"step": step, "loss": result.loss, **result.values, "grad_norm": result.grad_norm},
            **{"learning_rate": learning_rate, **rates, "seconds": seconds, "data_wait_seconds": data_wait_s},
            **{"memory_gib": peak_memory_bytes() / GIB, **result.counts, "skipped_steps": guards.skipped, **of_ranks},
        }
        self._write(record if guards.objection is None else {**record, "skipped": guards.objection})

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Values on held-out data."""
        self._write({"step": step, **values})

    def _write(self, record: dict[str, Any]) -> None:
        self.progress.log(without_nan(record))
        for tracker in self.trackers:
            tracker.log(record["step"], numbers(record))

    def _rates(self, result: Result, seconds: float) -> dict[str, float]:
        """By the second, over all processes; FLOPs by one of them."""
        config, loop = self.config, self.config.training
        positions = loop.global_batch_size * config.data.sequence_length
        flops = step_flops(config.model, self.vocabulary.size, config.data.sequence_length, positions, result.targets)
        tflops = flops / seconds / torch.distributed.get_world_size() / 1e12
        rates = {"tokens_per_second": positions / seconds}
        if result.audio_seconds is not None:
            rates["audio_seconds_per_second"] = result.audio_seconds / seconds
        rates["model_tflops"] = tflops
        return rates if self.peak_tflops is None else {**rates, "mfu": tflops / self.peak_tflops}

    def _compare_ranks(self) -> dict[str, Any]:
        report = self.stragglers.report()
        if report.slowest_rank is None:
            return {"forward_seconds": report.forward_seconds, "max_memory_gib": report.max_memory_gib}
        self.progress.note(str(report))
        return {
            "slowest_rank": report.slowest_rank,
            "slowest_ratio": report.slowest_ratio,
            "forward_seconds": report.forward_seconds,
            "slowest_data_wait_seconds": report.data_wait_seconds,
            "max_memory_gib": report.max_memory_gib,
        }


def _shown(rates: dict[str, float]) -> dict[str, float]:
    return {name: rates[name] for name in ("tokens_per_second", "mfu") if name in rates}
