"""How long a step is blocked by a checkpoint: Megatron's synchronous save, ours, and ours in the background.

    python benchmarks/async_save.py
    python benchmarks/async_save.py --layers 12 --repeats 9

One process, fp32, weights and Adam state of more than 1 GB, everything synced to the disk. The three take turns, each
followed by training steps. "Blocked" is the time in `save`, in `poll` after each step until the checkpoint is complete,
and nothing else; how much slower the steps beside the writer are is a row of its own.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from side_by_side import save

from megatron_aqaa import platform
from megatron_aqaa.checkpoint import store
from megatron_aqaa.checkpoint.optimizer_shards import LOADING_METADATA
from megatron_aqaa.checkpoint.saving import PendingSave
from megatron_aqaa.model import ModelConfig
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.lm_state import TrainState, new_state
from megatron_aqaa.training.lm_step import Batch, train_step
from megatron_aqaa.training.optimizer import OptimizerConfig
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary.for_text(160)
LENGTH = 32
Timing = dict[str, float]


def model(layers: int) -> ModelConfig:
    return ModelConfig(
        num_layers=layers, hidden_size=1024, ffn_hidden_size=2816, num_attention_heads=16, num_query_groups=4,
        params_dtype="fp32",
    )  # fmt: skip


def step(state: TrainState) -> float:
    """Seconds of one training step."""
    random = torch.Generator().manual_seed(state.step)
    token_ids = torch.randint(0, VOCABULARY.size, (1, LENGTH), generator=random)
    batch: Batch = {
        "token_ids": token_ids,
        "labels": token_ids.roll(-1, 1),
        "loss_mask": torch.ones(1, LENGTH),
        "document_ids": torch.zeros(1, LENGTH, dtype=torch.long),
    }
    begin = time.perf_counter()
    train_step(state.model_chunks, state.optimizer, [iter([batch])], VOCABULARY, 1, (1, LENGTH))
    state.scheduler.step(1)
    state.step += 1
    return time.perf_counter() - begin


def megatron(state: TrainState, run: Path) -> Timing:
    """`dist_checkpointing.save` with Megatron's own state of the optimizer."""
    begin = time.perf_counter()
    content = store.model_state(state.model_chunks)
    content["optimizer"] = state.optimizer.sharded_state_dict(content["model"], metadata=LOADING_METADATA)
    directory = run / "megatron"
    directory.mkdir(parents=True)
    dist_checkpointing.save(content, str(directory))
    blocked = time.perf_counter() - begin
    return {"blocked": blocked, "until complete": blocked, "step": step(state)}


def synchronous(state: TrainState, run: Path) -> Timing:
    begin = time.perf_counter()
    PendingSave(run, state.step, state.sharded(), in_background=False).complete()
    blocked = time.perf_counter() - begin
    return {"blocked": blocked, "until complete": blocked, "step": step(state)}


def asynchronous(state: TrainState, run: Path) -> Timing:
    """Steps go on until the checkpoint is complete."""
    begin = time.perf_counter()
    pending = PendingSave(run, state.step, state.sharded(), in_background=True)
    blocked, steps = time.perf_counter() - begin, []
    while not pending.is_written():
        steps.append(step(state))
    finish = time.perf_counter()
    pending.complete()
    done = time.perf_counter()
    return {"blocked": blocked + done - finish, "until complete": done - begin, "step": steps[0]}


def measure(layers: int, repeats: int, folder: Path) -> tuple[list[dict[str, Any]], int, float]:
    """Medians of each form, bytes of a checkpoint, seconds of a step alone."""
    state = new_state(model(layers), VOCABULARY, ParallelConfig(), OptimizerConfig(learning_rate=1e-4), steps=10_000)
    forms: dict[str, Callable[[TrainState, Path], Timing]] = {
        "megatron": megatron, "synchronous": synchronous, "asynchronous": asynchronous,
    }  # fmt: skip
    samples: dict[str, list[Timing]] = {name: [] for name in forms}
    alone = [step(state) for _ in range(2)][1:]
    for _ in range(repeats):
        for name, form in forms.items():
            samples[name].append(form(state, folder / name))
            print(f"{name:13s}", *(f"{key} {value:7.3f} s" for key, value in samples[name][-1].items()), flush=True)
            num_bytes = checkpoint_bytes(folder / name)
            shutil.rmtree(folder / name)
            alone.append(step(state))
    medians = [
        {"name": name, **{key: statistics.median(timing[key] for timing in timings) for key in timings[0]}}
        for name, timings in samples.items()
    ]
    return medians, num_bytes, statistics.median(alone)


def checkpoint_bytes(run: Path) -> int:
    return sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6, help="6 make a checkpoint of 1.4 GB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: that of temporary files")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    arguments = parser.parse_args()
    platform.initialize(ParallelConfig())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results, num_bytes, alone = measure(arguments.layers, arguments.repeats, Path(folder))
    _, ours, background = results
    ratio = background["blocked"] / ours["blocked"]
    print(f"{num_bytes / 1e9:.2f} GB; asynchronous blocks {ratio:.3f} of synchronous; a step alone {alone:.3f} s, "
          f"beside the writer {background['step']:.3f} s")  # fmt: skip
    facts = {"checkpoint_bytes": num_bytes, "blocked_ratio": ratio, "step_alone": alone, "repeats": arguments.repeats}
    save("async_save", arguments.output, results, **facts)
    platform.shutdown()


if __name__ == "__main__":
    main()
