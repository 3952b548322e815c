"""What the benchmarks share: forms that take turns in one run, and a JSON record of their medians."""

from __future__ import annotations

import json
import os
import platform as host
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa import platform

Forms = dict[str, Callable[[], object]]
RESULTS = Path(__file__).parent / "results"
_L2_BYTES = 256 << 20  # more than any GPU's second-level cache


def on_gpu() -> bool:
    return platform.device().type == "cuda"


def milliseconds(call: Callable[[], object]) -> float:
    """One call, the device's work included; on a GPU its second-level cache is overwritten first."""
    if not on_gpu():
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    torch.empty(_L2_BYTES, dtype=torch.uint8, device=platform.device()).zero_()
    begin, end = (torch.Event(platform.device(), enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def core_milliseconds(call: Callable[[], object]) -> float:
    """What one call costs all cores together: time of all threads of this process, waiting not counted."""
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def medians(
    forms: Forms, repeats: int, clock: Callable[[Callable[[], object]], float] = milliseconds, warm_up: int = 2
) -> dict[str, float]:
    """Milliseconds of each form, by `clock`. Forms take turns in blocks, so that a busy machine slows each alike.

    Blocks, because single calls in turn let one form pay for another's memory: the allocator gave back the pages of
    the dense gradients inside the next call, which cost that one 90 ms. The first `warm_up` calls of a block are left
    out (none of less than five repeats).
    """
    block = min(5, repeats)
    warm_up = warm_up if repeats >= 5 else 0
    samples: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(-(-repeats // block)):
        for name, call in forms.items():
            samples[name] += [clock(call) for _ in range(warm_up + block)][warm_up:]
    return {name: statistics.median(values) for name, values in samples.items()}


def row(title: str, times: dict[str, float], not_measured: Iterable[str] = ()) -> str:
    """A line of the table: each time, and how many times the first one it is."""
    first = next(iter(times.values()), 1.0)
    cells = [f"{name} {ms:9.3f} ms ({ms / first:6.2f}x)" for name, ms in times.items()]
    return f"{title:48s} {'  '.join([*cells, *(f'{name}: not measured' for name in not_measured)])}"


def save(name: str, output: Path | None, results: list[dict[str, Any]], **facts: Any) -> None:
    """Write `benchmarks/results/<name>_<device>.json`, or `output`."""
    device = platform.device()
    record = {
        "date": date.today().isoformat(),
        "device": device.type,
        "machine": host.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": host.python_version(),
        **facts,
        "results": results,
    }
    path = output or RESULTS / f"{name}_{device.type}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")
