"""The project's training loop beside a bare Megatron-Core loop: same model, same data, same optimizer, one process.

    python benchmarks/loop_overhead.py                        # the miniature's size: some four minutes on one core
    python benchmarks/loop_overhead.py --only small           # a step of a few milliseconds: overhead in the open

`bare` is what has to be done: batches from the same data set, Megatron's schedule with a loss of two sums,
`optimizer.step()`, `scheduler.step()`; it logs nothing, looks at no signal, guards nothing. `ours` is the run's whole
loop as `tools/train.py` starts it: loss by modality, guards, watchdog, comparison of ranks, one JSON line a step,
progress. Both are timed from one step's beginning to the next one's, by the clock and by the processor time of the
process, which others on the machine disturb less. They take turns in blocks of steps within one process: between two
blocks of the run's steps its task makes a block of bare ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from side_by_side import row, save
from torch import Tensor

from megatron_aqaa.config import parse_config
from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.training.lm_batch import micro_batches
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.lm_state import TrainState, new_state
from megatron_aqaa.training.lm_step import StepResult
from megatron_aqaa.training.loop import num_microbatches, run
from megatron_aqaa.training.monitoring.guards import Judge, always
from megatron_aqaa.training.train import NextTokens, training_set
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary.for_text(160)
MODELS = {  # layers, hidden, FFN, heads, key/value heads; sequence length, sequences a step, blocks
    "miniature": ((4, 256, 672, 8, 4), 256, 8, 30),
    "small": ((2, 64, 128, 4, 2), 64, 2, 60),
}
BLOCK, WARM_UP = 10, 2
Times = list[tuple[float, float]]
"""Milliseconds of each step: by the clock, and of processor time."""


def write_documents(directory: Path) -> None:
    """Random documents of text and groups of codes, half of each with loss."""
    random = np.random.default_rng(0)
    VOCABULARY.save(directory / "vocabulary.yaml")
    with DocumentWriter(directory / "documents", VOCABULARY, with_mask=True) as writer:
        for _ in range(2000):
            codes = random.integers(0, VOCABULARY.linguistic_size, (random.integers(2, 8), 5))
            codes += VOCABULARY.linguistic_start
            codes[:, 2:] += VOCABULARY.linguistic_size
            text = random.integers(5, VOCABULARY.text_size, random.integers(5, 20))
            token_ids = np.concatenate([[VOCABULARY.bos], text, codes.ravel(), [VOCABULARY.eot]])
            writer.add(token_ids, (np.arange(len(token_ids)) >= len(token_ids) // 2).astype(np.uint8))


def now_ms() -> tuple[float, float]:
    """By the clock; processor time."""
    return 1e3 * time.perf_counter(), 1e3 * time.process_time()


def since_ms(begin: tuple[float, float]) -> tuple[float, float]:
    wall_ms, cpu_ms = now_ms()
    return wall_ms - begin[0], cpu_ms - begin[1]


def config_of(name: str, directory: Path, blocks: int | None) -> TrainConfig:
    (layers, hidden, ffn, heads, groups), length, sequences, usual_blocks = MODELS[name]
    return parse_config(
        TrainConfig,
        {
            "run": directory / name,
            "vocabulary": directory / "vocabulary.yaml",
            "model": {
                "num_layers": layers,
                "hidden_size": hidden,
                "ffn_hidden_size": ffn,
                "num_attention_heads": heads,
                "num_query_groups": groups,
            },
            "data": {
                "train": {str(directory / "documents"): 1.0},
                "sequence_length": length,
                "packing": "whole",
            },
            "optimizer": {"learning_rate": 1e-3},
            "training": {
                "steps": (blocks or usual_blocks) * (BLOCK + WARM_UP),
                "micro_batch_size": sequences,
                "global_batch_size": sequences,
                "save_interval": 10**6,
            },
        },
    )


class BareLoop:
    """Megatron-Core and nothing else, on a model and an optimizer of its own."""

    def __init__(self, config: TrainConfig) -> None:
        loop = config.training
        self.state = new_state(config.model, VOCABULARY, config.parallel, config.optimizer, loop.steps)
        self.shape = (loop.micro_batch_size, config.data.sequence_length)
        self.batches = micro_batches(
            training_set(config, VOCABULARY),
            VOCABULARY,
            with_group_positions=False,
            micro_batch_size=loop.micro_batch_size,
            num_microbatches=num_microbatches(loop),
            consumed_samples=0,
        )

    def steps(self, count: int) -> Times:
        """Of each of `count` steps."""
        times = []
        for _ in range(count):
            begin = now_ms()
            self._step()
            times.append(since_ms(begin))
        return times

    def _step(self) -> None:
        (chunk,), optimizer = self.state.model_chunks, self.state.optimizer
        chunk.zero_grad_buffer()
        optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=self.batches,
            model=chunk,
            num_microbatches=1,
            micro_batch_size=self.shape[0],
            seq_length=self.shape[1],
            forward_only=False,
        )
        optimizer.step()
        self.state.scheduler.step(1)

    def _forward(self, batches: Iterator[dict[str, Tensor]], model: Any) -> tuple[Tensor, Any]:
        batch = next(batches)

        def loss(losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            total = (losses.float() * batch["loss_mask"]).sum()
            return total, batch["loss_mask"].sum().to(torch.int), {"loss": total.detach()}

        return model(**batch), loss


class TimedTask(NextTokens):
    """The run's own task, which makes a block of bare steps between two blocks of the run's."""

    times: dict[str, Times]

    def __init__(self, config: TrainConfig, state: TrainState, vocabulary: Vocabulary) -> None:
        super().__init__(config, state, vocabulary)
        self.bare = BareLoop(config)
        TimedTask.times = {"ours": [], "bare": []}
        self.place, self.begin = 0, now_ms()

    def step(self, judge: Judge = always) -> StepResult:
        last = since_ms(self.begin)
        if self.place > WARM_UP:  # the step before, up to this one's beginning
            self.times["ours"].append(last)
        if self.place == BLOCK + WARM_UP or self.place == 0:
            self.place = 0
            self.times["bare"] += self.bare.steps(BLOCK + WARM_UP)[WARM_UP:]
        self.place += 1
        self.begin = now_ms()
        return super().step(judge)


def measure(name: str, directory: Path, blocks: int | None) -> dict[str, Any]:
    """Medians of both loops, and how they scatter: the ratio of medians over each third of the run."""
    config = config_of(name, directory, blocks)
    run(config, TimedTask)
    result: dict[str, Any] = {
        "case": name, "model": dataclasses.asdict(config.model), "length": config.data.sequence_length,
        "sequences": config.training.global_batch_size, "steps": len(TimedTask.times["ours"]),
    }  # fmt: skip
    for index, kind in enumerate(("clock", "processor")):
        times = {form: [step[index] for step in TimedTask.times[form]] for form in ("bare", "ours")}
        medians = {form: statistics.median(values) for form, values in times.items()}
        ratios = [_ratio(times, part, 3) for part in range(3)]
        print(row(f"{name}, {kind}", medians), f" by thirds {' '.join(f'{r:.3f}' for r in ratios)}", flush=True)
        result[kind] = {"median_ms": medians, "ratio": medians["ours"] / medians["bare"], "ratio_by_thirds": ratios}
    return result


def _ratio(times: dict[str, list[float]], part: int, parts: int) -> float:
    ours, bare = (
        statistics.median(values[len(values) * part // parts : len(values) * (part + 1) // parts])
        for values in (times["ours"], times["bare"])
    )
    return ours / bare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--blocks", type=int, help=f"of {BLOCK} steps of each loop; default 30 and 60")
    parser.add_argument("--output", type=Path, help="JSON; default benchmarks/results/loop_overhead_<device>.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder))
        results = [measure(name, Path(folder), args.blocks) for name in MODELS if args.only in (None, name)]
    save("loop_overhead", args.output, results, threads=1, load_average=os.getloadavg())


if __name__ == "__main__":
    main()
