"""A plan as text: memory by stage, the step, the ten best layouts, and the lines to paste."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from megatron_aqaa.planner.cluster import GIB, Cluster
from megatron_aqaa.planner.memory import RankMemory
from megatron_aqaa.planner.parameters import count_parameters
from megatron_aqaa.planner.plan import Plan, Software
from megatron_aqaa.planner.prediction import Prediction, predict
from megatron_aqaa.planner.published import PublishedTable, published_flops, published_plan, sensitivity
from megatron_aqaa.planner.reasons import misfit_reason, reason
from megatron_aqaa.planner.search import Found

MEMORY_PARTS = ("parameters", "gradients", "optimizer", "activations", "logits", "working")
MOST_MISFITS = 5


def plan_lines(prediction: Prediction, cluster: Cluster) -> list[str]:
    """Head, memory by pipeline rank, and the step."""
    plan = prediction.plan
    heading = f"{plan.label} on {plan.num_gpus} × {cluster.name}"
    parameters = f"{count_parameters(plan.model):,} parameters, {plan.num_microbatches} micro-batches a step"
    return [heading, parameters, "", *memory_lines(prediction.memory, cluster), "", *step_lines(prediction)]


def memory_lines(memory: Sequence[RankMemory], cluster: Cluster) -> list[str]:
    """GiB of each pipeline rank; equal neighbours in one line."""
    lines = ["GiB by rank " + "".join(f"{name:>12}" for name in (*MEMORY_PARTS, "total", "free"))]
    start = 0
    for rank in range(1, len(memory) + 1):
        if rank < len(memory) and memory[rank] == memory[start]:
            continue
        name = f"{start}" if rank - start == 1 else f"{start} … {rank - 1}"
        one = memory[start]
        sizes = [getattr(one, part) for part in MEMORY_PARTS]
        values = [*sizes, one.total, cluster.usable_bytes - one.total]
        lines.append(f"{name:<11} " + "".join(f"{value / GIB:12.2f}" for value in values))
        start = rank
    return lines


def step_lines(prediction: Prediction) -> list[str]:
    """Seconds of the step by what they are spent on, and throughput."""
    time, total = prediction.time, prediction.time.total
    names = ("products", "attention", "small kernels", "TP transfers", "CP transfers")
    parts = dict(zip(names, time.rank.parts, strict=True))
    parts |= {"between stages": time.stages, "bubble": time.bubble, "slowest GPU": time.slowest_gpu}
    parts |= {"DP transfers": time.data, "optimizer": time.optimizer}
    spent = [f"{name} {seconds:.3f} ({100 * seconds / total:.1f} %)" for name, seconds in parts.items() if seconds > 0]
    return [
        f"step {total:.3f} s: " + ", ".join(spent),
        f"{prediction.flops_per_gpu / 1e12:.1f} model TFLOP/s per GPU, MFU {100 * prediction.mfu:.1f} %, "
        f"{prediction.tokens_per_second:,.0f} tokens/s",
        f"a day: {prediction.tokens_per_day / 1e9:,.2f} billion tokens, or {prediction.audio_hours_per_day:,.0f} hours "
        "of speech were all of them audio",
    ]


def search_lines(found: Found, count: int = 10) -> list[str]:
    """The best layouts, why each loses against the first, and why others do not fit."""
    best = found.best[0]
    lines = [f"the best of {found.tried:,} plans", f"{'':>3} {'s/step':>8} {'MFU %':>6} {'GiB':>6}  layout"]
    for place, prediction in enumerate(found.best[:count], 1):
        peak = prediction.peak_bytes / GIB
        lines.append(
            f"{place:>3} {prediction.time.total:8.3f} {100 * prediction.mfu:6.1f} {peak:6.1f}  "
            f"{prediction.plan.label}: {reason(prediction, best)}"
        )
    if found.misfits:
        lines += ["", "do not fit"]
        lines += [f"    {misfit.plan.label}: {misfit_reason(misfit)}" for misfit in found.misfits[:MOST_MISFITS]]
    return lines


def pipeline_lines(predictions: Sequence[Prediction], cluster: Cluster, count: int = 8) -> list[str]:
    """The ways to share the layers of one layout out over its pipeline, fastest first."""
    lines = ["layers shared out over the pipeline in other ways"]
    lines.append(f"{'s/step':>8} {'bubble':>8} {'stages':>8} {'GiB':>6}")
    for prediction in predictions[:count]:
        layout, time = prediction.plan.layout, prediction.time
        how = f"{layout.label} {layout.pipeline_model_parallel_layout or ''}".strip()
        full = "" if prediction.peak_bytes <= cluster.usable_bytes else " (does not fit)"
        sizes = f"{time.total:8.3f} {time.bubble:8.3f} {time.stages:8.3f} {prediction.peak_bytes / GIB:6.1f}"
        lines.append(f"{sizes}  {how}{full}")
    return lines


def yaml_lines(plan: Plan) -> str:
    """Sections to paste into the run's YAML."""
    layout, model, batch = plan.layout, plan.model, plan.batch
    parallel: dict[str, object] = {
        "tensor_model_parallel_size": layout.tensor_model_parallel_size,
        "pipeline_model_parallel_size": layout.pipeline_model_parallel_size,
    }
    if layout.num_chunks > 1:
        parallel["virtual_pipeline_model_parallel_size"] = layout.num_chunks
    if layout.pipeline_model_parallel_layout is not None:
        parallel["pipeline_model_parallel_layout"] = layout.pipeline_model_parallel_layout
    if layout.context_parallel_size > 1:
        parallel["context_parallel_size"] = layout.context_parallel_size
    flags = ("sequence_parallel", "overlap_grad_reduce", "overlap_param_gather", "tp_comm_overlap")
    parallel |= {flag: True for flag in flags if getattr(layout, flag)}
    sections = {
        "parallel": parallel,
        "training": {"micro_batch_size": batch.micro_batch_size, "global_batch_size": batch.global_batch_size},
        "model": {"recompute": model.recompute, "recompute_logits": model.recompute_logits},
    }
    return str(yaml.safe_dump(sections, sort_keys=False, width=120))


def published_lines(table: PublishedTable, cluster: Cluster, software: Software) -> list[str]:
    """Each row's prediction beside what was measured, then what each unpublished input would change."""
    heading = f"{'row':<12} {'GPUs':>5} {'published':>10} {'predicted':>10} {'error':>7} {'MFU %':>6} {'GiB':>5}"
    lines = [table.source, heading]
    details = []
    for row in table.rows:
        plan = published_plan(table, row)
        prediction = predict(plan, cluster, software)
        measured, predicted = published_flops(row, prediction), prediction.flops_per_gpu
        lines.append(
            f"{row.name:<12} {plan.num_gpus:>5} {measured / 1e12:10.1f} {predicted / 1e12:10.1f} "
            f"{100 * (predicted / measured - 1):+6.1f}% {100 * prediction.mfu:6.1f} {prediction.peak_bytes / GIB:5.1f}"
        )
        changes = [
            f"{name} {100 * (other.flops_per_gpu / predicted - 1):+.1f} %"
            for name, other in sensitivity(plan, cluster, software)
        ]
        details.append(f"{row.name}: " + ", ".join(changes))
    return [*lines, "", "what one input would change, all else equal", *details]
