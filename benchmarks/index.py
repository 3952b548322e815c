"""Index builders on the host at a million tokens, beside numpy and pure Python.

    python benchmarks/index.py

Processor time, because all forms run in one thread: of wall time a busy machine takes more from the forms that outlast
a time slice, which are the peers. Two columns: arrays in the cache, and arrays in memory (`cold`).
"""

from __future__ import annotations

import argparse
import bisect
import collections
from collections.abc import Callable
from pathlib import Path

import numpy as np
from side_by_side import Forms, core_milliseconds, medians, row, save

from megatron_aqaa import ops
from megatron_aqaa.vocabulary import Vocabulary

# Calls that bring 16 MB back into the third-level cache behind a form that swept it, which the lists of Python do. With
# the usual two, the form behind Python paid: `interleave_text_audio` took .35-.40 ms there, .27 in any other place.
WARM_UP = 10
_SWEEP = np.zeros(64 << 20, np.uint8)  # twice the third-level cache of a desktop or of a slice of a server


def cold_milliseconds(call: Callable[[], object]) -> float:
    """Processor time of one call whose arrays have left the cache."""
    _SWEEP[::64] += 1
    return core_milliseconds(call)


def index_forms() -> dict[str, Forms]:
    random, audio_range = np.random.default_rng(0), Vocabulary().audio_range
    linguistic, semantic = random.integers(0, 1024, 400_000), random.integers(0, 4096, 600_000)
    text, audio = random.integers(0, 65536, 400_000), random.integers(65536, 70656, 600_000)
    lists = [x.tolist() for x in (linguistic, semantic, text, audio)]
    groups = np.hstack((linguistic.reshape(-1, 2) + 65536, semantic.reshape(-1, 3) + 66560)).ravel()
    listed = groups.tolist()
    lengths = np.clip(random.lognormal(5.5, 1.0, 5_000).astype(np.int64), 1, 8192)
    return {
        "interleave_codes": {
            "ours": lambda: ops.interleave_codes(linguistic, semantic, **audio_range),
            "numpy": lambda: np.hstack((linguistic.reshape(-1, 2) + 65536, semantic.reshape(-1, 3) + 66560)).ravel(),
            "Python": lambda: python_codes(lists[0], lists[1]),
        },
        "deinterleave_codes": {
            "ours": lambda: ops.deinterleave_codes(groups, **audio_range),
            "numpy": lambda: numpy_deinterleave(groups),
            "Python": lambda: python_deinterleave(listed),
        },
        "interleave_text_audio": {
            "ours": lambda: ops.interleave_text_audio(text, audio),
            "numpy": lambda: np.hstack((text.reshape(-1, 10), audio.reshape(-1, 15))).ravel(),
            "copy": lambda: np.concatenate((text, audio)),  # the same bytes in no new order
            "Python": lambda: python_text_audio(lists[2], lists[3]),
        },
        "packing_plan": {
            "ours": lambda: ops.packing_plan(lengths, 8192),
            "numpy": lambda: numpy_packing(lengths, 8192),
            "Python": lambda: python_packing(lengths.tolist(), 8192),
            "Python, runs": lambda: python_packing_runs(lengths.tolist(), 8192),
        },
    }


def python_codes(linguistic: list[int], semantic: list[int]) -> list[int]:
    out = []
    for group in range(min(len(linguistic) // 2, len(semantic) // 3)):
        out += [code + 65536 for code in linguistic[2 * group : 2 * group + 2]]
        out += [code + 66560 for code in semantic[3 * group : 3 * group + 3]]
    return out


def numpy_deinterleave(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes = groups.reshape(-1, 5)
    linguistic, semantic = codes[:, :2] - 65536, codes[:, 2:] - 66560
    if linguistic.min() < 0 or linguistic.max() > 1023 or semantic.min() < 0 or semantic.max() > 4095:
        raise ValueError("not whole groups")
    return linguistic.ravel(), semantic.ravel()


def python_deinterleave(groups: list[int]) -> tuple[list[int], list[int]]:
    linguistic, semantic = [], []
    for place, token in enumerate(groups):
        codes, start, stop = (linguistic, 65536, 66560) if place % 5 < 2 else (semantic, 66560, 70656)
        if not start <= token < stop:
            raise ValueError(f"token {token} at position {place}")
        codes.append(token - start)
    return linguistic, semantic


def python_text_audio(text: list[int], audio: list[int]) -> list[int]:
    out, t, a = [], 0, 0
    while a < len(audio):
        stop = len(audio) if len(text) - t < 10 else a + 15
        out += text[t : t + 10] + audio[a:stop]
        t, a = t + 10, stop
    return out + text[t:]


def numpy_packing(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    rooms, bins = np.zeros(0, np.int64), []
    for item in np.argsort(-lengths, kind="stable"):
        left = np.where(rooms >= lengths[item], rooms, capacity + 1)
        if not bins or left.min() > capacity:
            rooms, left = np.append(rooms, capacity), np.append(left, capacity)
            bins.append([])
        best = int(left.argmin())
        rooms[best] -= lengths[item]
        bins[best].append(int(item))
    return bins


def python_packing(lengths: list[int], capacity: int) -> list[list[int]]:
    open_bins, bins = [], []  # (room, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(open_bins, (lengths[item], 0))
        room, best = open_bins.pop(place) if place < len(open_bins) else (capacity, len(bins))
        if best == len(bins):
            bins.append([])
        bins[best].append(item)
        bisect.insort(open_bins, (room - lengths[item], best))
    return bins


def python_packing_runs(lengths: list[int], capacity: int) -> list[list[int]]:
    """Items of one length that fit in one place go there together, as in `csrc/index/packing.h`."""
    items_of = collections.defaultdict(list)
    for item, length in enumerate(lengths):
        items_of[length].append(item)
    open_bins, bins = [], []  # (room, bin), sorted
    for length in sorted(items_of, reverse=True):
        items = items_of[length]
        while items:
            place = bisect.bisect_left(open_bins, (length, 0))
            room, best = open_bins.pop(place) if place < len(open_bins) else (capacity, len(bins))
            if best == len(bins):
                bins.append([])
            count = min(room // length, len(items))
            bins[best] += items[:count]
            items = items[count:]
            bisect.insort(open_bins, (room - count * length, best))
    return bins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=None, help="JSON; default benchmarks/results/index_cpu.json")
    args = parser.parse_args()
    results = []
    for title, forms in index_forms().items():
        warm = medians(forms, args.repeats, core_milliseconds, WARM_UP)
        cold = medians(forms, args.repeats, cold_milliseconds, 0)
        results.append({"case": title, "median_ms": warm, "cold_ms": cold})
        print(row(title, warm), row(f"{title}, cold", cold), sep="\n", flush=True)
    save("index", args.output, results, repeats=args.repeats, numpy=np.__version__, clock="processor time")


if __name__ == "__main__":
    main()
