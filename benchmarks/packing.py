"""SFT steps on packed sequences beside padded rows, side by side in one run, one process, one thread.

    python benchmarks/packing.py
    python benchmarks/packing.py --data runs/demo/data/sft/train --steps 6 --repeats 10

Both forms train the model of examples/tiny_cpu through the same conversations, with the same conversations in every
optimizer step, so loss and targets of a step are the same. *Packed*: eight rows of `--length` positions, filled by best
fit. *Padded*: one conversation a row, padded to the longest of the batch. Tokens are those of conversations, padding
not counted. Without a data set, lengths are drawn like those of the demo.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from side_by_side import medians, row, save

from megatron_aqaa import ops, platform
from megatron_aqaa.data.indexed import Document, Documents, documents_exist
from megatron_aqaa.data.sample import FIELDS, Batch, LossWeights, SampleBuilder
from megatron_aqaa.model import ModelConfig
from megatron_aqaa.training.lm_state import new_state
from megatron_aqaa.training.lm_step import train_step
from megatron_aqaa.training.optimizer import OptimizerConfig
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary.for_text(160)
MODEL = ModelConfig(4, 256, 672, 8, 4, params_dtype="bf16")
DEMO = Path("runs/demo/data/sft/train")
ROWS = 8


def conversations(prefix: Path, count: int, length: int) -> list[Document]:
    """The first conversations of a data set that fit a row, or random ones of the demo's lengths and share of loss."""
    if documents_exist(prefix):
        documents = Documents(prefix)
        chosen = (int(i) for i in np.random.default_rng(0).permutation(len(documents)))
        fitting = (documents[i] for i in chosen if documents.lengths[i] <= length + 1)
        return [document for document, _ in zip(fitting, range(count), strict=False)]
    random = np.random.default_rng(0)
    lengths = np.clip(random.normal(122, 45, count), 30, min(290, length + 1)).astype(int)
    ids = (random.integers(5, VOCABULARY.audio_stop, n) for n in lengths)
    return [Document(i, (np.arange(len(i)) > 0.45 * len(i)).astype(np.uint8)) for i in ids]


def rows_of(packs: Sequence[Sequence[Document]], length: int) -> Batch:
    """A batch [B, S], one row a pack."""
    samples = []
    for pack in packs:
        builder = SampleBuilder(length, VOCABULARY, LossWeights())
        for document in pack:
            builder.add(document)
        samples.append(builder.finish())
    return {name: torch.stack([sample[name] for sample in samples]) for name in FIELDS}


def batches(documents: Sequence[Document], length: int, steps: int) -> tuple[list[Batch], list[Batch], int]:
    """Packed and padded batches of the same conversations, and the number of their tokens."""
    offsets, order = ops.packing_plan([len(document.token_ids) - 1 for document in documents], length)
    packs = [[documents[i] for i in order[a:b]] for a, b in pairwise(offsets)]
    # the plan has the fullest rows first
    shuffled = [packs[i] for i in np.random.default_rng(0).permutation(len(packs))][: ROWS * steps]
    groups = [shuffled[start : start + ROWS] for start in range(0, len(shuffled), ROWS)]
    packed = [rows_of(group, length) for group in groups]
    singles = [[[document] for pack in group for document in pack] for group in groups]
    padded = [rows_of(single, max(len(d.token_ids) for (d,) in single) - 1) for single in singles]
    num_tokens = sum(int((batch["document_ids"] >= 0).sum()) for batch in packed)
    assert num_tokens == sum(int((batch["document_ids"] >= 0).sum()) for batch in padded)
    return packed, padded, num_tokens


class Form:
    """A model of its own, and a call that trains it through all batches."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        model_parallel_cuda_manual_seed(0)  # the same weights in both forms
        self.state = new_state(
            MODEL, VOCABULARY, platform.ParallelConfig(), OptimizerConfig(learning_rate=1e-3), steps=100_000
        )

    def __call__(self) -> list[float]:
        """Losses of the steps."""
        return [self._step(batch) for batch in self.batches]

    def _step(self, batch: Batch) -> float:
        chunks, optimizer = self.state.model_chunks, self.state.optimizer
        shape = (batch["token_ids"].shape[0], batch["token_ids"].shape[1])
        return train_step(chunks, optimizer, [repeat(batch)], VOCABULARY, 1, shape).loss

    @property
    def share_filled(self) -> float:
        """Positions that hold a token of a conversation."""
        positions = sum(batch["token_ids"].numel() for batch in self.batches)
        return sum(int((batch["document_ids"] >= 0).sum()) for batch in self.batches) / positions


def measure(prefix: Path, length: int, steps: int, repeats: int) -> dict[str, Any]:
    """Medians of both forms; prints them."""
    source = str(Path(*prefix.parts[-3:])) if documents_exist(prefix) else "drawn lengths"
    packed, padded, num_tokens = batches(conversations(prefix, 4 * ROWS * steps, length), length, steps)
    forms = {"packed": Form(packed), "padded": Form(padded)}
    first = {name: form()[0] for name, form in forms.items()}
    assert abs(first["packed"] - first["padded"]) < 1e-4 * first["padded"], f"losses of the first step differ: {first}"
    times = medians(dict(forms), repeats)
    rates = {name: 1e3 * num_tokens / ms for name, ms in times.items()}
    filled = {name: form.share_filled for name, form in forms.items()}
    print(row(f"{steps} steps, {num_tokens:,} tokens of {source}", times))
    for name, rate in rates.items():
        print(f"{name}: {rate:,.0f} tokens/s, {filled[name]:.3f} of the positions filled")
    ratio = rates["packed"] / rates["padded"]
    print(f"packed is {ratio:.2f}× padded")
    return {"case": source, "median_ms": times, "tokens_per_second": rates, "ratio": ratio, "filled": filled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEMO, help="prefix of an SFT data set")
    parser.add_argument("--length", type=int, default=256, help="positions of a packed row")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps a call")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=None, help="JSON; default benchmarks/results/packing_cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    platform.initialize(platform.ParallelConfig())
    result = measure(args.data, args.length, args.steps, args.repeats)
    save("packing", args.output, [result], repeats=args.repeats, length=args.length, steps=args.steps)
    platform.shutdown()


if __name__ == "__main__":
    main()
