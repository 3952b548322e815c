"""A step of preference optimization that reads text targets alone beside the same step over all positions.

    python benchmarks/dpo_step.py                  # both shapes: some eight minutes on one core
    python benchmarks/dpo_step.py --only miniature

All forms compute the same loss, on the text targets of both answers; they differ in which positions go through the
output head and in what is kept of it. `text targets` is what the project does, `recomputed` the same with
`model.recompute_logits`; `all positions` sends every position through the same head; `full logits` gathers logits
[B, S, V] and takes `log_softmax`, as one would write it down. A step is forward, backward, clipping and AdamW.

Times: all forms in one process, taking turns. Memory: the high-water mark of one step above what model, gradients and
optimizer take, each form in a process of its own that has made a step on a small batch before.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from logps import resident_kib
from side_by_side import medians, on_gpu, row, save
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.data.preferences import PairRows, PreferencePairs
from megatron_aqaa.model import ModelConfig
from megatron_aqaa.ops.index import interleave_text_audio
from megatron_aqaa.training.dpo import step as dpo_step
from megatron_aqaa.training.dpo.config import DPOConfig
from megatron_aqaa.training.dpo.reference import PrecomputedReference
from megatron_aqaa.training.lm_state import TrainState, new_state
from megatron_aqaa.training.optimizer import OptimizerConfig
from megatron_aqaa.training.schedule import Batch, Window, gradients, update
from megatron_aqaa.vocabulary import Vocabulary

LENGTH, NUM_PAIRS = 512, 64
CONFIG = DPOConfig("sigmoid", beta=0.1, loss_mask="text")


class Case(NamedTuple):
    """A shape: the model, its vocabulary, rows in a batch, and how often to measure."""

    title: str
    model: ModelConfig
    vocabulary: Vocabulary
    rows: int
    repeats: int


CASES = {
    "miniature": Case("miniature, bf16", ModelConfig(4, 256, 672, 8, 4), Vocabulary.for_text(160), 4, 20),
    "released vocabulary": Case(
        "vocabulary 74752, 2 layers, bf16", ModelConfig(2, 256, 672, 8, 4), Vocabulary(), 2, 15
    ),
}


@functools.cache
def window(name: str, num_rows: int, length: int) -> Window:
    """One micro-batch of packed pairs: questions of 8 groups, answers of 20–40 pieces, 10 text : 15 audio."""
    vocabulary = CASES[name].vocabulary
    random = np.random.default_rng(0)
    scale = length / LENGTH
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "pairs"
        with DocumentWriter(prefix, vocabulary, with_mask=True) as writer:
            for _ in range(NUM_PAIRS):
                prompt = [vocabulary.bos, *_codes(vocabulary, random, round(8 * scale))]
                for _ in range(2):
                    words = random.integers(5, vocabulary.text_size, round(random.integers(20, 41) * scale))
                    codes = _codes(vocabulary, random, round(len(words) * 15 / 10 / 5))
                    markers = {"audio_start": vocabulary.audio_start, "audio_end": vocabulary.audio_end}
                    answer = [*interleave_text_audio(words, codes, **markers), vocabulary.eot]
                    writer.add([*prompt, *answer], np.arange(len(prompt) + len(answer)) >= len(prompt))
        Path(f"{prefix}.json").write_text(json.dumps({"kind": "preference"}))
        pairs = PreferencePairs([prefix], vocabulary, length, "text", "text")
        rows = PairRows(pairs, pairs.used, seed=0)
        batch = {field: torch.stack([rows[i][field] for i in range(num_rows)]) for field in rows[0]}
    batch = {field: value.to(platform.device()) for field, value in batch.items()}
    table = torch.randn(NUM_PAIRS, 2, generator=torch.Generator().manual_seed(0)) - 100.0
    return PrecomputedReference(table).attach([[batch]])


def _codes(vocabulary: Vocabulary, random: np.random.Generator, num_groups: int) -> list[int]:
    codes = random.integers(0, vocabulary.linguistic_size, (num_groups, 5)) + vocabulary.linguistic_start
    codes[:, 2:] += vocabulary.linguistic_size
    return [int(code) for code in codes.ravel()]


def state_of(name: str) -> TrainState:
    model, vocabulary = CASES[name].model, CASES[name].vocabulary
    return new_state(model, vocabulary, platform.ParallelConfig(), OptimizerConfig(learning_rate=1e-5), steps=10_000)


def text_targets(state: TrainState, batches: Window, *, recomputed: bool = False) -> dpo_step.DPOResult:
    state.model_chunks[0].module.recompute_logits = recomputed
    return dpo_step.dpo_step(state.model_chunks, state.optimizer, batches, CONFIG, _shape(batches))


def all_positions(state: TrainState, batches: Window) -> dpo_step.DPOResult:
    everywhere = [[{**batch, "loss_mask": torch.ones_like(batch["loss_mask"])} for batch in batches[0]]]
    return text_targets(state, everywhere)


def full_logits(state: TrainState, batches: Window) -> Any:
    def loss(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        losses = -logits.float().log_softmax(-1).gather(-1, batch["targets"][..., None])[..., 0]
        return dpo_step.pair_loss(CONFIG)(losses, batch)

    without = [{**batch, "targets": batch["labels"]} for batch in batches[0]]
    for batch in without:
        del batch["labels"]
    gradients(state.model_chunks, state.optimizer, [iter(without)], loss, 1, _shape(batches))
    return update(state.optimizer)


FORMS: dict[str, Callable[[TrainState, Window], Any]] = {
    "text targets": text_targets,
    "text targets, recomputed": functools.partial(text_targets, recomputed=True),
    "all positions": all_positions,
    "full logits": full_logits,
}


def _shape(batches: Window) -> tuple[int, int]:
    rows, length = batches[0][0]["token_ids"].shape
    return rows, length


def peak_mib(name: str, form: str) -> float:
    """Of one step, in this process."""
    state = state_of(name)
    FORMS[form](state, window(name, 1, LENGTH // 4))  # makes the optimizer's state, and loads what a first call loads
    batches = window(name, CASES[name].rows, LENGTH)
    if on_gpu():
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.max_memory_allocated()
        FORMS[form](state, batches)
        return (torch.accelerator.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what lies freed in the allocator would hide as much of the peak
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is resident now
    before = resident_kib("VmRSS")
    FORMS[form](state, batches)
    return (resident_kib("VmHWM") - before) / 2**10


def peak_mib_in_fresh_process(name: str, form: str) -> float:
    command = [sys.executable, __file__, "--memory-of", form, "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure(name: str) -> dict[str, Any]:
    """One case: a line of times, one of memory, and the record for the JSON."""
    case, state = CASES[name], state_of(name)
    batches = window(name, case.rows, LENGTH)
    targets = int(batches[0][0]["loss_mask"].sum())
    share = targets / batches[0][0]["loss_mask"].numel()
    times = medians({form: functools.partial(step, state, batches) for form, step in FORMS.items()}, case.repeats)
    memory = {form: peak_mib_in_fresh_process(name, form) for form in FORMS}
    print(row(f"{case.title}, {share:.0%} are text targets", times))
    first = memory["text targets"]
    print(
        " " * 49 + "  ".join(f"{form} {mib:7.1f} MiB ({mib / first:5.2f}x)" for form, mib in memory.items()), flush=True
    )
    return {
        "case": case.title, "rows": case.rows, "length": LENGTH, "vocabulary": case.vocabulary.size,
        "hidden": case.model.hidden_size, "layers": case.model.num_layers, "text_targets": targets,
        "repeats": case.repeats, "median_ms": times, "peak_mib": memory,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--output", type=Path, help="JSON; default benchmarks/results/dpo_step_<device>.json")
    parser.add_argument("--memory-of", choices=FORMS, help="print one form's peak at --only and stop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    platform.initialize(platform.ParallelConfig())
    if args.memory_of:
        print(peak_mib(args.only, args.memory_of))
    else:
        results = [measure(name) for name in CASES if args.only in (None, name)]
        save("dpo_step", args.output, results, threads=1, load_average=os.getloadavg())
    platform.shutdown()


if __name__ == "__main__":
    main()
