"""The project's training step beside a plain PyTorch model of the same size, side by side in one run, one process.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --repeats 60

A step is forward, backward, gradient clipping and AdamW on eight packed sequences of 256 tokens, 45 % of which carry
loss, at the size of examples/tiny_cpu. The plain model is written as one would without Megatron: fused AdamW, bf16 by
autocast, the output head over all positions or (`chosen`) only over those with loss, as the project's model does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from itertools import repeat
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from megatron_aqaa import platform
from megatron_aqaa.model import ModelConfig
from megatron_aqaa.model.alibi import sqrt_alibi_bias, sqrt_alibi_slopes
from megatron_aqaa.model.aqaa_model import VOCABULARY_MULTIPLE
from megatron_aqaa.training.lm_state import new_state
from megatron_aqaa.training.lm_step import train_step
from megatron_aqaa.training.optimizer import OptimizerConfig
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary.for_text(160)
BATCH, LENGTH = 8, 256
HIDDEN, FFN, LAYERS, HEADS, GROUPS = 256, 672, 4, 8, 4
HEAD = HIDDEN // HEADS
PARTS = {
    "embedding": (
        "megatron_aqaa::dual_codebook_embedding",
        "GeneratedBackwardFor_megatron_aqaa_dual_codebook_embedding_defaultBackward",
    ),
    "attention": ("_Products", "_ProductsBackward"),
    "output head and loss": ("_LinearVocabParallelLogps", "_LinearVocabParallelLogpsBackward"),
    "projections": (
        "LinearWithGradAccumulationAndAsyncCommunication",
        "LinearWithGradAccumulationAndAsyncCommunicationBackward",
    ),
    "norms and SwiGLU": ("_RMSNorm", "_RMSNormBackward", "_SwiGLU", "_SwiGLUBackward"),
}
"""Names under which the profiler lists the parts."""


def batch() -> dict[str, Tensor]:
    """Random tokens: two documents a row, 45 % of the positions with loss."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY.audio_stop, (BATCH, LENGTH + 1), generator=random)
    return {
        "token_ids": ids[:, :-1].contiguous(),
        "labels": ids[:, 1:].contiguous(),
        "loss_mask": (torch.rand(BATCH, LENGTH, generator=random) < 0.45).float(),
        "document_ids": (torch.arange(LENGTH) > LENGTH // 2).long().expand(BATCH, LENGTH).contiguous(),
    }


class PlainLayer(nn.Module):
    """Pre-norm attention with grouped queries and SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(HIDDEN, 1e-5) for _ in range(2))
        self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * GROUPS) * HEAD, bias=False)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.up = nn.Linear(HIDDEN, 2 * FFN, bias=False)
        self.down = nn.Linear(FFN, HIDDEN, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, S, H] with an additive bias [B, A, S, S]."""
        rows, length, _ = x.shape
        query, key, value = self.qkv(self.norms[0](x)).split([HEADS * HEAD, GROUPS * HEAD, GROUPS * HEAD], -1)
        query = query.view(rows, length, HEADS, HEAD).transpose(1, 2)
        key, value = (
            part.view(rows, length, GROUPS, HEAD).transpose(1, 2).repeat_interleave(HEADS // GROUPS, 1)
            for part in (key, value)
        )
        attended = (query @ key.transpose(-1, -2) * HEAD**-0.5 + bias).softmax(-1).to(value.dtype) @ value
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, HIDDEN))
        gate, up = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class PlainModel(nn.Module):
    """The miniature's language model without Megatron."""

    def __init__(self, *, chosen: bool) -> None:
        super().__init__()
        rows = VOCABULARY.padded_size(VOCABULARY_MULTIPLE)
        self.chosen = chosen
        self.embedding, self.head = nn.Embedding(rows, HIDDEN), nn.Linear(HIDDEN, rows, bias=False)
        self.layers = nn.ModuleList(PlainLayer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, 1e-5)

    def forward(self, token_ids: Tensor, labels: Tensor, loss_mask: Tensor, document_ids: Tensor) -> Tensor:
        """Mean loss over the positions with loss."""
        position = torch.arange(LENGTH)
        bias = sqrt_alibi_bias(sqrt_alibi_slopes(HEADS).float(), position, position)
        other = document_ids[:, :, None] != document_ids[:, None]
        bias = bias[None].masked_fill(other[:, None], -torch.inf)
        x = self.embedding(token_ids)
        if torch.is_autocast_enabled("cpu"):
            x, bias = x.bfloat16(), bias.bfloat16()
        for layer in self.layers:
            x = layer(x, bias)
        x, weights = self.norm(x), loss_mask
        if self.chosen:
            where = loss_mask > 0
            x, labels, weights = x[where], labels[where], loss_mask[where]
        losses = F.cross_entropy(self.head(x).float().flatten(0, -2), labels.flatten(), reduction="none")
        return (losses * weights.flatten()).sum() / weights.sum()


def plain_step(dtype: str, *, chosen: bool) -> Callable[[], object]:
    """A step of the plain model."""
    model, data = PlainModel(chosen=chosen), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = model(**data)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def our_step(dtype: str) -> Callable[[], object]:
    """A step of the project's loop."""
    model = ModelConfig(LAYERS, HIDDEN, FFN, HEADS, GROUPS, params_dtype=dtype)  # type: ignore[arg-type]
    state = new_state(model, VOCABULARY, platform.ParallelConfig(), OptimizerConfig(learning_rate=1e-3), steps=10_000)
    batches = repeat(batch())
    return lambda: train_step(state.model_chunks, state.optimizer, [batches], VOCABULARY, 1, (BATCH, LENGTH))


def measure(dtype: str, repeats: int) -> dict[str, float]:
    """Tokens per second of each form, from medians over interleaved steps."""
    forms = {
        "megatron_aqaa": our_step(dtype),
        "plain": plain_step(dtype, chosen=False),
        "plain, chosen": plain_step(dtype, chosen=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for index in range(repeats + 3):  # the first three warm up
        for name, step in forms.items():
            started_s = time.perf_counter()
            step()
            if index >= 3:
                seconds[name].append(time.perf_counter() - started_s)
    return {name: BATCH * LENGTH / statistics.median(values) for name, values in seconds.items()}


def shares(dtype: str, steps: int = 10) -> dict[str, float]:
    """How much of a step's time each part takes, forward and backward together, by torch's profiler."""
    step = our_step(dtype)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled, record_function("step"):
        for _ in range(steps):
            step()
    spent = {event.key: event.cpu_time_total for event in profiled.key_averages()}
    return {part: sum(spent[name] for name in names) / spent["step"] for part, names in PARTS.items()}


def main() -> None:
    """Measure both precisions, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_step_cpu.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    platform.initialize(platform.ParallelConfig())
    results = {dtype: measure(dtype, arguments.repeats) for dtype in ("bf16", "fp32")}
    parts = {dtype: shares(dtype) for dtype in results}
    platform.shutdown()
    for dtype, rates in results.items():
        for name, rate in rates.items():
            ratio = rates["megatron_aqaa"] / rate
            print(f"{dtype}  {name:14s} {rate:7.0f} tokens/s   megatron_aqaa is {ratio:.2f}×")
    for dtype, by_part in parts.items():
        print(f"{dtype}  share of a step: " + ", ".join(f"{part} {share:.1%}" for part, share in by_part.items()))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "tokens_per_second": results,
        "shares": parts,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
