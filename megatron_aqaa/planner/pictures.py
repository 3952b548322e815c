"""A plan as a picture: memory of each pipeline stage, and the pipeline's timetable.

Needs the extra `demo` (matplotlib).
"""

from __future__ import annotations

from pathlib import Path

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
except ImportError as error:
    raise ImportError("the picture of a plan needs matplotlib: pip install 'megatron-aqaa[demo]'") from error

from megatron_aqaa.planner.cluster import GIB, Cluster
from megatron_aqaa.planner.layer_time import times
from megatron_aqaa.planner.pipeline_time import pipeline_of
from megatron_aqaa.planner.plan import Software
from megatron_aqaa.planner.prediction import Prediction
from megatron_aqaa.planner.report import MEMORY_PARTS
from megatron_aqaa.planner.schedule import Event, Pipeline, duration, simulate

COLORS = {
    "parameters": "#3f7fc8",
    "gradients": "#5b6f8f",
    "optimizer": "#8a63c9",
    "activations": "#2f9e8f",
    "logits": "#d0842c",
    "working": "#b9b4a6",
}
FORWARD, BACKWARD, INK, LINE = "#3f7fc8", "#d0842c", "#24292e", "#dcd8ce"
MOST_ROUNDS = 3
"""Groups of micro-batches drawn: the middle of a step repeats itself."""


def draw_plan(prediction: Prediction, cluster: Cluster, software: Software, path: str | Path) -> None:
    """Write the picture; the ending of `path` chooses PNG or SVG."""
    plan = prediction.plan
    ranks = plan.layout.pipeline_model_parallel_size
    figure = Figure(figsize=(11, 3.6 + 1.4 + 0.32 * ranks), layout="constrained")
    memory, timetable = figure.subplots(2, 1, height_ratios=[3.2, 1.0 + 0.32 * ranks])
    figure.suptitle(f"{plan.label} on {plan.num_gpus} × {cluster.name}", color=INK, fontsize=11)
    _draw_memory(memory, prediction, cluster)
    _draw_timetable(timetable, prediction, cluster, software)
    figure.savefig(path, dpi=110)


def _draw_memory(axes: Axes, prediction: Prediction, cluster: Cluster) -> None:
    positions = range(len(prediction.memory))
    bottoms = [0.0] * len(prediction.memory)
    for part in MEMORY_PARTS:
        sizes = [getattr(rank, part) / GIB for rank in prediction.memory]
        axes.bar(positions, sizes, bottom=bottoms, color=COLORS[part], label=part, width=0.7)
        bottoms = [bottom + size for bottom, size in zip(bottoms, sizes, strict=True)]
    axes.axhline(cluster.usable_bytes / GIB, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(len(bottoms) - 0.25, cluster.usable_bytes / GIB, "usable", color=INK, fontsize=8, va="bottom", ha="right")
    axes.set_xticks(list(positions), [_stage_name(prediction, rank) for rank in positions], fontsize=8)
    axes.set_ylabel("GiB", fontsize=9)
    axes.set_xlim(-0.6, len(bottoms) - 0.2)
    axes.set_ylim(0, max(*bottoms, cluster.usable_bytes / GIB) * 1.08)
    axes.legend(ncols=len(MEMORY_PARTS), fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.spines[["top", "right"]].set_visible(False)


def _stage_name(prediction: Prediction, rank: int) -> str:
    chunks = prediction.plan.stages[rank]
    layers = "+".join(str(chunk.num_layers) for chunk in chunks) if len(chunks) <= 4 else f"{len(chunks)} chunks"
    ends = [
        name
        for name, here in (
            ("embedding", any(chunk.embedding for chunk in chunks)),
            ("head", any(chunk.head for chunk in chunks)),
        )
        if here
    ]
    return "\n".join([f"rank {rank}", layers, *ends])


def _draw_timetable(axes: Axes, prediction: Prediction, cluster: Cluster, software: Software) -> None:
    plan = prediction.plan
    pipeline = pipeline_of(plan, cluster, times(plan, cluster, software))
    shown = min(plan.num_microbatches, MOST_ROUNDS * pipeline.num_ranks)
    events = simulate(Pipeline(pipeline.forward, pipeline.backward, pipeline.transfer, shown))
    for rank, work in enumerate(events):
        _draw_rank(axes, rank, work, pipeline.num_chunks)
    axes.set_ylim(pipeline.num_ranks - 0.5, -0.5)
    axes.set_xlim(0, duration(events) * 1e3)
    axes.set_yticks(range(pipeline.num_ranks), [f"rank {rank}" for rank in range(pipeline.num_ranks)], fontsize=8)
    left_out = "" if shown == plan.num_microbatches else f" of {plan.num_microbatches}"
    axes.set_xlabel(f"ms; {shown}{left_out} micro-batches, lighter for later virtual stages", fontsize=9)
    patches = [Patch(color=FORWARD, label="forward"), Patch(color=BACKWARD, label="backward")]
    patches.append(Patch(facecolor="white", edgecolor=LINE, label="waiting"))
    axes.legend(handles=patches, ncols=3, fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_rank(axes: Axes, rank: int, events: list[Event], num_chunks: int) -> None:
    for event in events:
        faded = 0.55 * event.work.chunk / max(1, num_chunks - 1)
        axes.barh(
            rank,
            (event.stop - event.start) * 1e3,
            left=event.start * 1e3,
            height=0.8,
            color=BACKWARD if event.work.backward else FORWARD,
            alpha=1 - faded,
            edgecolor="white",
            linewidth=0.3,
        )
