"""Whole runs of tools/tokenize_audio.py in processes of their own, for benchmarks/tokenizing.py."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from megatron_aqaa.tokenizer.corpus import Block

TOOL = Path(__file__).parent.parent / "tools" / "tokenize_audio.py"
ONE_RUN, TWO_RUNS = "one run, two workers", "two runs"
# not getrusage, whose ru_maxrss of a child begins with what its parent held when it started it
NOTE_MEMORY = """
import re, runpy, sys
from pathlib import Path
_, note, *sys.argv = sys.argv
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    Path(note).write_text(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
TWO_WAYS = {ONE_RUN: ("num_workers=2",), TWO_RUNS: ("shard=0/2", "shard=1/2")}


def workers(
    tokenizer: Path, directory: Path, seconds: Sequence[float], lines_per_block: int, repeats: int
) -> dict[str, Any]:
    """Seconds of speech per second of two processes, as workers of one run and as two runs.

    Both ways work at the same time, all four processes on the same cores, so that whatever else the machine does slows
    them alike. Rates count from where all four are at work to where the first has nothing left to do, as in a run of
    hours, where start and end are nothing; those per core second count the processor time of all blocks.
    """
    turns, per_core = list[dict[str, float]](), list[dict[str, float]]()
    for turn in range(repeats):
        outputs = {name: directory / f"way_{number}" for number, name in enumerate(TWO_WAYS)}
        processes = []
        for name in [*TWO_WAYS][:: -1 if turn % 2 else 1]:
            shutil.rmtree(outputs[name], ignore_errors=True)
            for word in TWO_WAYS[name]:
                processes.append(start(tokenizer, directory / "manifest.jsonl", outputs[name], lines_per_block, word))
        finish(processes)
        turns.append(rates(outputs, seconds, lines_per_block))
        per_core.append({name: sum(seconds) / processor_s(output) for name, output in outputs.items()})
    result: dict[str, Any] = {"case": "two processes"}
    for unit, measured in {"speech_s_per_s": turns, "speech_s_per_core_s": per_core}.items():
        ratios = [turn[ONE_RUN] / turn[TWO_RUNS] for turn in measured]
        result[unit] = [{name: round(value, 1) for name, value in turn.items()} for turn in measured]
        result[f"{unit}, workers of runs"] = round(statistics.median(ratios), 3)
    return result


def processor_s(output: Path) -> float:
    """Of all blocks."""
    return sum(Block(path, ()).read().took_s for path in (output / "blocks").glob("*.npz"))


def rates(outputs: dict[str, Path], seconds: Sequence[float], lines_per_block: int) -> dict[str, float]:
    """Seconds of speech per second of each way while all processes worked; from the times of the block files."""
    times_s, speech_s = {}, {}
    for name, output in outputs.items():
        blocks = sorted((output / "blocks").glob("*.npz"))
        times_s[name] = np.array([path.stat().st_mtime_ns / 1e9 for path in blocks])
        speech_s[name] = np.array([sum(seconds[int(p.stem) :][:lines_per_block]) for p in blocks])
    # the workers of a pool begin some seconds apart: both have surely finished one when five blocks are there
    first, last = np.sort(times_s[ONE_RUN])[[4, -2]]
    shards = [times_s[TWO_RUNS][shard::2] for shard in (0, 1)]
    begin_s, end_s = max(first, *(s.min() for s in shards)), min(last, *(s.max() for s in shards))
    found = {}
    for name in outputs:
        inside = (times_s[name] > begin_s) & (times_s[name] <= end_s)
        found[name] = float(speech_s[name][inside].sum() / (end_s - begin_s))
    return found


def start(
    tokenizer: Path, manifest: Path, output: Path, lines_per_block: int, *words: str, note_memory: Path | None = None
) -> subprocess.Popen[bytes]:
    """A run of the tool; `words` are settings. It may note the most memory it held, in KiB."""
    config = output.with_suffix(".yaml")
    settings = {"manifest": manifest, "tokenizer": tokenizer, "output": output, "lines_per_block": lines_per_block}
    config.write_text("".join(f"{name}: {value}\n" for name, value in {**settings, "num_workers": 0}.items()))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(["-c", NOTE_MEMORY, str(note_memory)] if note_memory else []), str(TOOL), str(config)]
    return subprocess.Popen([*command, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for all."""
    for process in processes:
        if process.wait():
            raise RuntimeError(f"{process.args!r}: exit status {process.returncode}")


def memory(tokenizer: Path, directory: Path, hours: float) -> dict[str, Any]:
    """Most memory of a run on one file of three minutes, and on one of `hours`."""
    found = {}
    for name, seconds in {"3 minutes": 180.0, f"{hours:g} hours": 3600 * hours}.items():
        folder = directory / f"{seconds:.0f}"
        folder.mkdir()
        write_noise(folder / "long.wav", seconds)
        (folder / "manifest.jsonl").write_text(json.dumps({"audio": "long.wav"}) + "\n")
        finish([start(tokenizer, folder / "manifest.jsonl", folder / "tokens", 16, note_memory=folder / "peak")])
        found[name] = int((folder / "peak").read_text()) // 1024
        shutil.rmtree(folder)
    short, long = found.values()
    return {"case": "memory of one file", "peak_mib": found, "long_of_short": round(long / short, 3)}


def write_noise(path: Path, seconds: float, rate_hz: int = 16_000) -> None:
    """A wav file, written minute by minute."""
    random = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate_hz, 1, "PCM_16") as file:
        for left in range(round(seconds * rate_hz), 0, -60 * rate_hz):
            file.write(random.uniform(-0.3, 0.3, min(left, 60 * rate_hz)))
