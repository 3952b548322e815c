"""Four layers of the 130B model on one GPU beside the planner: TFLOP/s of forward and backward, peak memory.

    python benchmarks/large_layers.py                    # on a GPU: one of 8 tensor-parallel slices, and full width
    python benchmarks/large_layers.py --case miniature   # anywhere: shows that it runs; its prediction says nothing

One micro-batch of 8,192 tokens, bf16, all positions with loss, a vocabulary of 5,282. The slice is a model of an eighth
of the heads and of the FFN at the full hidden size, without tensor-parallel transfers. Each case is a process of its
own, since the peak is one of a process. One update is made before, so that the optimizer's state counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from side_by_side import milliseconds, on_gpu, save

from megatron_aqaa import platform
from megatron_aqaa.model import ModelConfig
from megatron_aqaa.planner.cluster import load_cluster
from megatron_aqaa.planner.flops import model_flops_per_token
from megatron_aqaa.planner.layout import Layout
from megatron_aqaa.planner.plan import AQAA, Batch, Plan
from megatron_aqaa.planner.planned_model import PlannedModel
from megatron_aqaa.planner.prediction import Prediction, predict
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.platform.device import peak_memory_bytes
from megatron_aqaa.training import schedule
from megatron_aqaa.training.lm_state import TrainState, new_state
from megatron_aqaa.training.optimizer import OptimizerConfig
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary.for_text(160)
CASES = {  # hidden, FFN, heads, key/value heads, width of a head; tokens
    "slice": (12288, 3904, 12, 1, 128, 8192),
    "full_width": (12288, 31232, 96, 8, 128, 8192),
    "miniature": (256, 672, 8, 4, 32, 256),
}
LAYERS = 4
CLUSTER = Path(__file__).parent.parent / "examples" / "clusters" / "h200.yaml"


def sizes(name: str) -> tuple[dict[str, Any], int]:
    """Section `model`, and tokens of a sequence."""
    hidden, ffn, heads, groups, channels, length = CASES[name]
    return {
        "num_layers": LAYERS, "hidden_size": hidden, "ffn_hidden_size": ffn, "num_attention_heads": heads,
        "num_query_groups": groups, "kv_channels": channels,
    }, length  # fmt: skip


def predicted(name: str, cluster: Path) -> Prediction:
    model, length = sizes(name)
    planned = PlannedModel(**model, vocab_size=VOCABULARY.size)
    return predict(Plan(planned, Layout(), Batch(length, 1, 1), 1), load_cluster(cluster), AQAA)


def measured_ms(name: str, repeats: int) -> float:
    """Median of forward and backward."""
    model, length = sizes(name)
    config, optimizer = ModelConfig(**model), OptimizerConfig(learning_rate=1e-4)
    state = new_state(config, VOCABULARY, ParallelConfig(), optimizer, steps=10)
    pass_through(state, length)
    schedule.update(state.optimizer)  # its moments are made by the first update
    times = [milliseconds(lambda: pass_through(state, length)) for _ in range(2 + repeats)][2:]
    return statistics.median(times)


def pass_through(state: TrainState, length: int) -> None:
    """Forward and backward of one micro-batch."""
    random = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, VOCABULARY.size, (1, length), generator=random).to(platform.device())
    batch = {
        "token_ids": token_ids,
        "labels": token_ids.roll(-1, 1),
        "loss_mask": torch.ones(1, length, device=platform.device()),
        "document_ids": torch.zeros_like(token_ids),
    }
    schedule.gradients(state.model_chunks, state.optimizer, [repeat(batch)], summed, 1, (1, length))


def summed(losses: torch.Tensor, batch: schedule.Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = (losses * batch["loss_mask"]).sum()
    return total, batch["loss_mask"].sum().to(torch.int), total.detach()[None]


def measure(name: str, repeats: int, cluster: Path) -> dict[str, Any]:
    """One case, in this process."""
    platform.initialize(ParallelConfig())
    seconds = measured_ms(name, repeats) / 1e3
    platform.shutdown()
    prediction = predicted(name, cluster)
    flops = model_flops_per_token(prediction.plan.model, prediction.plan.batch.sequence_length) * prediction.plan.tokens
    times = {"measured": seconds, "predicted": prediction.time.rank.total}
    return {
        "case": name,
        "plan": dataclasses.asdict(prediction.plan.model),
        "seconds": times,
        "model_tflops": {kind: flops / value / 1e12 for kind, value in times.items()},
        "peak_gib": {"measured": peak_memory_bytes() / 2**30, "predicted": prediction.peak_bytes / 2**30},
    }


def line(result: dict[str, Any]) -> str:
    parts = []
    for what in ("model_tflops", "peak_gib"):
        measured, expected = result[what]["measured"], result[what]["predicted"]
        parts.append(f"{what} {measured:.4g}, predicted {expected:.4g} ({100 * (expected / measured - 1):+.1f} %)")
    return f"{result['case']}: {'; '.join(parts)}"


def in_own_process(name: str, repeats: int, cluster: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["--case", name, "--repeats", repeats, "--cluster", cluster, "--output", f"{folder}/result.json"]
        subprocess.run([sys.executable, __file__, *map(str, words)], check=True)
        result: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())["results"][0]
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="default: slice and full_width")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cluster", type=Path, default=CLUSTER, help="whose rates are predicted with")
    parser.add_argument("--output", type=Path, help="JSON; default benchmarks/results/large_layers_<device>.json")
    args = parser.parse_args()
    if args.case is None and not on_gpu():
        parser.error("the large cases need a GPU; --case miniature runs anywhere")
    if args.case is not None:
        results = [measure(args.case, args.repeats, args.cluster)]
        print(line(results[0]), flush=True)
    else:
        results = [in_own_process(name, args.repeats, args.cluster) for name in ("slice", "full_width")]
    if args.case is None or args.output is not None:
        save("large_layers", args.output, results, cluster=str(args.cluster.name))


if __name__ == "__main__":
    main()
