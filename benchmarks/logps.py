"""Log-probabilities of labels from hidden states, output projection included: time and peak memory beside the peers.

    python benchmarks/logps.py                  # every shape: some sixty minutes on one core
    python benchmarks/logps.py --only miniature
    python benchmarks/logps.py --only miniature --processor-time  # on a busy machine
    python benchmarks/logps.py --threads 1 2    # twice as long

Every form does forward and backward and ends with the same sums in Megatron's fp32 `main_grad` and in the gradient of
the hidden states. Times: all forms in one process, taking turns. Memory: the high-water mark of one call above what
the inputs and `main_grad` take, each form in a process of its own that has run it once on a tiny shape (none for
`torch.compile`: compiling leaves a mark of its own).

On a CPU the 3B shapes have an eighth of the tokens, as a call takes up to ten seconds; the memory of the main forms is
measured at all 8,192 as well, one call each. "3B, TP8 slice" is what one of eight ranks holds, as a vocabulary of its
own: in one process Megatron's module cannot be one of eight, so every form runs on those rows alone and none
communicates.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from logps_forms import FORMS, Case, inputs, step
from side_by_side import NOT_MEASURED, core_milliseconds, medians, milliseconds, not_measured, on_gpu, save

from megatron_aqaa import platform
from megatron_aqaa.vocabulary import Vocabulary

ON_GPU = on_gpu()
MINIATURE, RELEASED = Vocabulary.for_text(160), Vocabulary()
SLICE = Vocabulary.for_text(RELEASED.size // 8 - (MINIATURE.size - MINIATURE.text_size))
TINY = Case("warm-up", 64, 64, Vocabulary(64, 16, 32, 120, audio_start=112, audio_end=113), torch.bfloat16, 0.5, 1)
FULL_TOKENS = 8192
TOKENS = FULL_TOKENS if ON_GPU else 1024
CASES = [
    *(
        Case("miniature", 2048, 256, MINIATURE, dtype, share, 20)
        for dtype in (torch.bfloat16, torch.float32)
        for share in (0.45, 1.0)
    ),
    *(
        Case(shape, TOKENS, 3072, vocabulary, torch.bfloat16, share, 20)
        for shape, vocabulary in (("3B, TP8 slice", SLICE), ("3B", RELEASED))
        for share in (0.45, 1.0)
    ),
]
MAIN_FORMS = ("fused, kept", "fused", "unfused", "eager")  # measured at all tokens too


def peak_mib(case: Case, name: str) -> float:
    """Of one call, in this process."""
    step(FORMS[name], inputs(TINY._replace(dtype=case.dtype)))  # loads what the first call loads
    data = inputs(case)
    if ON_GPU:
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.max_memory_allocated()
        step(FORMS[name], data)
        return (torch.accelerator.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what the inputs' making left in the allocator would hide as much of the peak
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is resident now
    before = resident_kib("VmRSS")
    step(FORMS[name], data)
    return (resident_kib("VmHWM") - before) / 2**10


def resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak_of_one_call(index: int, tokens: int, name: str, threads: int) -> float | str:
    """MiB; not measured where the machine's memory does not suffice."""
    if ON_GPU:
        return peak_mib(CASES[index]._replace(tokens=tokens), name)
    command = [sys.executable, __file__, "--memory-of", name, "--case", str(index), "--tokens", str(tokens)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True)
    if done.returncode == -signal.SIGKILL:
        return f"{NOT_MEASURED}: out of memory"
    done.check_returncode()
    return float(done.stdout.splitlines()[-1])


def peaks(index: int, tokens: int, names: Iterable[str], threads: int) -> dict[str, float | str]:
    """Of each form but `torch.compile`, a line each."""
    memory = {}
    for name in (name for name in names if name != "torch.compile"):
        memory[name] = peak_of_one_call(index, tokens, name, threads)
        shown = memory[name] if isinstance(memory[name], str) else f"{memory[name]:9.1f} MiB"
        print(f"{name:15s} {tokens} tokens: peak {shown}", flush=True)
    return memory


def measure(index: int, threads: int, clock: Callable[[Callable[[], object]], float]) -> dict[str, Any]:
    """One case: a line per form, and the record for the JSON."""
    case = CASES[index]
    print(
        f"--- {case.title}: [{case.tokens}, {case.hidden}] × {case.vocabulary.size}, {case.repeats} repeats, "
        f"{threads} thr."
    )
    memory = {"peak_mib": peaks(index, case.tokens, case.forms, threads)}
    if case.shape == "3B" and case.tokens < FULL_TOKENS:
        memory[f"peak_mib_{FULL_TOKENS}_tokens"] = peaks(index, FULL_TOKENS, MAIN_FORMS, threads)
    data = inputs(case)
    times = medians({name: functools.partial(step, FORMS[name], data) for name in case.forms}, case.repeats, clock)
    for name, ms in times.items():
        over = f"({ms / times['fused']:5.2f}× fused, {ms / times['unfused']:5.2f}× unfused)"
        print(f"{name:15s} {ms:10.2f} ms {over}", flush=True)
    return {
        "case": case.title, "tokens": case.tokens, "hidden": case.hidden, "vocabulary": case.vocabulary.size,
        "threads": threads, "repeats": case.repeats, "median_ms": times, **memory,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted({case.shape for case in CASES}))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--processor-time", action="store_true", help="instead of wall time; for one thread")
    parser.add_argument("--output", type=Path, help="JSON; default benchmarks/results/logps_<device>.json")
    parser.add_argument("--memory-of", choices=FORMS, help="print one form's peak at --case and --tokens, and stop")
    parser.add_argument("--case", type=int, default=0)
    parser.add_argument("--tokens", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads[0])
    platform.initialize(platform.ParallelConfig())
    if args.memory_of:
        # of all processes of a machine without enough memory, this one is to go
        Path("/proc/self/oom_score_adj").write_text("1000")
        print(peak_mib(CASES[args.case]._replace(tokens=args.tokens or CASES[args.case].tokens), args.memory_of))
        platform.shutdown()
        return
    clock = core_milliseconds if args.processor_time and not ON_GPU else milliseconds
    results = []
    for threads, index in ((t, i) for t in args.threads for i in range(len(CASES))):
        torch.set_num_threads(threads)
        if args.only is None or CASES[index].shape in args.only:
            results.append(measure(index, threads, clock))
    if not ON_GPU:
        results += [not_measured(f"{case.title}, on a GPU", case.forms) for case in CASES]
    save("logps", args.output, results, clock=clock.__name__)
    platform.shutdown()


if __name__ == "__main__":
    main()
