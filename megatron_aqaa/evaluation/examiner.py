"""A second process that hears waveforms and measures them while the first one generates."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import soundfile
import torch

from megatron_aqaa.evaluation.judge import SpokenAnswerJudge
from megatron_aqaa.evaluation.style import Manner, measure_manner

_judge: SpokenAnswerJudge | None = None  # one per process: the recogniser's model takes a second to load


@dataclass(frozen=True)
class Finding:
    """What a recording holds.

    Attributes:
        heard: the answer that the judge recognised; empty if none.
        manner: how long and how high it is spoken.
    """

    heard: str
    manner: Manner


class Examiner:
    """Examines recordings in the order in which they are handed in. Use as a context manager.

    Args:
        answers: what may be heard.
    """

    def __init__(self, answers: Iterable[str]) -> None:
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),  # not forked: the caller holds threads of PyTorch
            initializer=_start,
            initargs=(sorted(set(answers)),),
        )

    def __enter__(self) -> Examiner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)

    def examine(self, path: Path) -> Future[Finding]:
        """Hear and measure a 16 kHz mono recording."""
        return self._pool.submit(_examine, path)

    def measure(self, path: Path) -> Future[Manner]:
        """Measure alone."""
        return self._pool.submit(_measure, path)


def _start(answers: list[str]) -> None:
    global _judge
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent, which ends this process
    torch.set_num_threads(1)
    _judge = SpokenAnswerJudge(answers)


def _examine(path: Path) -> Finding:
    assert _judge is not None
    waveform = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    heard = _judge.recognise(waveform) if len(waveform) else None
    return Finding(heard or "", measure_manner(waveform))


def _measure(path: Path) -> Manner:
    return measure_manner(torch.from_numpy(soundfile.read(path, dtype="float32")[0]))
