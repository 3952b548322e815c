"""Fifty steps of the 3B recipe on one GPU, on random documents, as a user starts them: MFU and memory from its log.

    python benchmarks/recipe_steps.py                                     # on a GPU of more than 84 GiB
    python benchmarks/recipe_steps.py training.micro_batch_size=1 model.recompute=full model.recompute_logits=true
    python benchmarks/recipe_steps.py model.num_layers=2 model.hidden_size=64 model.ffn_hidden_size=128 \\
        model.num_attention_heads=4 model.num_query_groups=2 model.kv_channels=16 data.sequence_length=128 --steps 5

The last is a miniature for any machine. The global batch is 16 sequences, which leaves out no part of a step; the run
is killed after its last step, before it would save.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import save

from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.vocabulary import Vocabulary

ROOT = Path(__file__).parent.parent
RECIPE = "examples/aqaa_3b/pretrain_stage1.yaml"
WARM_UP = 5
FIELDS = ("seconds", "tokens_per_second", "model_tflops", "mfu", "memory_gib", "data_wait_seconds")


def write_documents(folder: Path) -> None:
    """Random text and groups of codes, 4 million tokens."""
    random, vocabulary = np.random.default_rng(0), Vocabulary()
    vocabulary.save(folder / "vocabulary.yaml")
    with DocumentWriter(folder / "documents", vocabulary) as writer:
        for _ in range(4000):
            codes = random.integers(0, vocabulary.linguistic_size, (random.integers(50, 150), 5))
            codes += vocabulary.linguistic_start
            codes[:, 2:] += vocabulary.linguistic_size
            text = random.integers(100, vocabulary.text_size, random.integers(200, 800))
            writer.add(np.concatenate([[vocabulary.bos], text, codes.ravel(), [vocabulary.eot]]))


def records(run: Path) -> list[dict[str, Any]]:
    log = run / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def train(folder: Path, steps: int, overrides: list[str]) -> list[dict[str, Any]]:
    """The log of the first steps.

    Raises:
        RuntimeError: the run ended before.
    """
    settings = [
        f"run={folder}/run", f"vocabulary={folder}/vocabulary.yaml", f"data.directory={folder}",
        "data.train={documents: 1}", f"data.cache_directory={folder}/cache", "training.init_from=null",
        "training.global_batch_size=16", "optimizer.warmup_steps=5", f"training.steps={steps + 100}",
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, "tools/train.py", RECIPE, *settings, *overrides], cwd=ROOT)
    try:
        while len(found := records(folder / "run")) < steps:
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with {process.returncode} after {len(found)} steps")
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    return found[:steps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="section.field=value of the recipe")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, help="JSON; default benchmarks/results/recipe_steps_<device>.json")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder))
        found = train(Path(folder), args.steps, args.overrides)
    later = found[min(WARM_UP, len(found) - 1) :]
    medians = {name: statistics.median(record[name] for record in later) for name in FIELDS if name in later[0]}
    print(", ".join(f"{name} {value:.4g}" for name, value in medians.items()), flush=True)
    result = {"losses": [record["loss"] for record in found], "medians": medians, "skipped": found[-1]["skipped_steps"]}
    save("recipe_steps", args.output, [result], recipe=RECIPE, overrides=args.overrides, steps=args.steps)


if __name__ == "__main__":
    main()
