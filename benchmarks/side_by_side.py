"""What the benchmarks share: forms that take turns in one run, and a JSON record of their medians."""

from __future__ import annotations

import json
import os
import platform as host
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa import platform
from megatron_aqaa.platform.device import device_name

Forms = dict[str, Callable[[], object]]
RESULTS = Path(__file__).parent / "results"
NOT_MEASURED = "not measured"
# More than any GPU's second-level cache, written often enough to keep an H200 busy for 0.9 ms (4.8 TB/s, calculated).
_L2_BYTES, _FLUSHES = 256 << 20, 16


def on_gpu() -> bool:
    return platform.device().type == "cuda"


def milliseconds(call: Callable[[], object]) -> float:
    """One call, the device's work included; on a GPU its second-level cache is overwritten first.

    On a GPU this is the time between two events on the device, gaps included in which it waits for the host's next
    launch. The overwriting, queued before, hides them: while the device is busy with it the host runs ahead, as it does
    in a training step. Once over 256 MiB would take 0.06 ms, less than the host needs for a forward and a backward, so
    it is done sixteen times. What a form launches later than 0.9 ms after its start, or after a wait of its own for the
    device (`nonzero`), does count the gaps.
    """
    if not on_gpu():
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.Event(platform.device(), enable_timing=True) for _ in range(2))
    cache = torch.empty(_L2_BYTES, dtype=torch.uint8, device=platform.device())
    for _ in range(_FLUSHES):
        cache.zero_()
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


def copy_of(num_bytes: int) -> Callable[[], object]:
    """PyTorch's copy that moves `num_bytes`: half of them read, half written. The bound of what moves as much."""
    source = torch.ones(num_bytes // 2, dtype=torch.uint8, device=platform.device())
    destination = torch.zeros_like(source)
    return lambda: destination.copy_(source)


def row(title: str, times: dict[str, float]) -> str:
    """A line of the table: each time, and how many times the first one it is."""
    first = next(iter(times.values()), 1.0)
    return f"{title:48s} {'  '.join(f'{name} {ms:9.3f} ms ({ms / first:6.2f}x)' for name, ms in times.items())}"


def not_measured(case: str, forms: Iterable[str]) -> dict[str, Any]:
    """The record of a case that this machine cannot run, which names its forms; prints its line."""
    print(f"{case:48s} {'  '.join(f'{name}: {NOT_MEASURED}' for name in forms)}", flush=True)
    return {"case": case, "median_ms": dict.fromkeys(forms, NOT_MEASURED)}


def save(name: str, output: Path | None, results: list[dict[str, Any]], **facts: Any) -> None:
    """Write `benchmarks/results/<name>_<device>.json`, or `output`."""
    record = {"date": date.today().isoformat(), **machine(), **facts, "results": results}
    path = output or RESULTS / f"{name}_{platform.device().type}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")


def machine() -> dict[str, Any]:
    """Where a result comes from: device and versions."""
    facts = {
        "device": platform.device().type,
        "machine": host.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": host.python_version(),
        "megatron_core": version("megatron-core"),
    }
    if on_gpu():
        gpu = {"gpu": device_name(), "driver": driver(), "cuda": torch.version.cuda, "triton": version("triton")}
        facts |= gpu
    return facts


def version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """Version of the GPU's driver; None where `nvidia-smi` does not tell."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def short_name(gpu: str) -> str:
    """For the name of a file: `NVIDIA H200` is `h200`."""
    return re.sub(r"\W+", "_", gpu.removeprefix("NVIDIA ").lower())
