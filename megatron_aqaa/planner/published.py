"""Predictions beside published runs, and how much each input that was not published matters."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_aqaa.config import load_config
from megatron_aqaa.planner.cluster import Cluster
from megatron_aqaa.planner.layout import Layout
from megatron_aqaa.planner.plan import AQAA, MEGATRON, Batch, Plan, Software
from megatron_aqaa.planner.planned_model import PlannedModel
from megatron_aqaa.planner.prediction import Prediction, predict

SOFTWARE = {"aqaa": AQAA, "megatron": MEGATRON}


@dataclass(frozen=True)
class PublishedRun:
    """One row of a published table: what it says of the run, and what it measured.

    Attributes:
        name: as in the table.
        teraflops: model TFLOP/s per GPU, attention counted in full; None where `mfu` or `step_seconds` is published.
        mfu: share of the data sheet's rate.
        step_seconds: of one optimizer step.
        num_query_groups: None for as many as heads.
        ffn_hidden_size: None for four times the hidden size.
        virtual_pipeline_model_parallel_size: None for one layer a chunk.
        micro_batch_size: None for the table's; as are the three below.
    """

    name: str
    num_attention_heads: int
    hidden_size: int
    num_layers: int
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    data_parallel_size: int
    global_batch_size: int
    context_parallel_size: int = 1
    teraflops: float | None = None
    mfu: float | None = None
    step_seconds: float | None = None
    num_query_groups: int | None = None
    ffn_hidden_size: int | None = None
    virtual_pipeline_model_parallel_size: int | None = None
    micro_batch_size: int | None = None
    sequence_length: int | None = None
    vocab_size: int | None = None
    gated_linear_unit: bool | None = None


@dataclass(frozen=True)
class PublishedTable:
    """Rows of one source, and the inputs that hold for all of them; those not published are fixed here, beforehand.

    Attributes:
        source: where the rows stand.
    """

    source: str
    software: str
    vocab_size: int
    sequence_length: int
    micro_batch_size: int
    gated_linear_unit: bool
    linear_bias: bool
    rows: tuple[PublishedRun, ...]


def load_published(path: str | Path) -> PublishedTable:
    """Read a table.

    Raises:
        ValueError: unknown, missing or wrong keys; software of another name than "aqaa" and "megatron".
    """
    table = load_config(PublishedTable, path)
    if table.software not in SOFTWARE:
        raise ValueError(f"{path}: software = {table.software!r}: must be one of {', '.join(SOFTWARE)}")
    return table


def published_plan(table: PublishedTable, row: PublishedRun) -> Plan:
    """The plan of a row, with the inputs that the table fixes."""
    gated = table.gated_linear_unit if row.gated_linear_unit is None else row.gated_linear_unit
    model = PlannedModel(
        num_layers=row.num_layers,
        hidden_size=row.hidden_size,
        ffn_hidden_size=row.ffn_hidden_size or 4 * row.hidden_size,
        num_attention_heads=row.num_attention_heads,
        num_query_groups=row.num_query_groups or row.num_attention_heads,
        gated_linear_unit=gated,
        linear_bias=table.linear_bias,
        vocab_size=row.vocab_size or table.vocab_size,
    )
    batch = Batch(
        row.sequence_length or table.sequence_length,
        row.micro_batch_size or table.micro_batch_size,
        row.global_batch_size,
    )
    return Plan(model, _published_layout(row), batch, row.data_parallel_size)


def published_flops(row: PublishedRun, prediction: Prediction) -> float:
    """FLOP/s per GPU that the row measured."""
    if row.teraflops is not None:
        return row.teraflops * 1e12
    if row.mfu is not None:
        return row.mfu * prediction.peak_flops
    if row.step_seconds is not None:
        return prediction.flops_per_gpu * prediction.time.total / row.step_seconds
    raise ValueError(f"{row.name}: give teraflops, mfu or step_seconds")


def _published_layout(row: PublishedRun) -> Layout:
    ranks, tensor = row.pipeline_model_parallel_size, row.tensor_model_parallel_size
    chunks = row.virtual_pipeline_model_parallel_size or row.num_layers // ranks
    return Layout(
        tensor,
        ranks,
        chunks if ranks > 1 and chunks > 1 else None,
        row.context_parallel_size,
        sequence_parallel=tensor > 1,
        overlap_grad_reduce=True,
        overlap_param_gather=True,
        tp_comm_overlap=tensor > 1,
    )


def sensitivity(plan: Plan, cluster: Cluster, software: Software) -> list[tuple[str, Prediction]]:
    """The prediction with one unpublished input changed at a time."""
    changed: list[tuple[str, Plan, Software]] = []
    for chunks in _other_chunks(plan):
        layout = dataclasses.replace(plan.layout, virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None)
        changed.append((f"{chunks} virtual stages", dataclasses.replace(plan, layout=layout), software))
    for micro in (1, 2, 4):
        batch = dataclasses.replace(plan.batch, micro_batch_size=micro)
        if batch != plan.batch and _divides(plan, batch):
            changed.append((f"micro-batch {micro}", dataclasses.replace(plan, batch=batch), software))
    changed += [(name, dataclasses.replace(plan, model=model), software) for name, model in _other_models(plan.model)]
    changed += [
        (name, dataclasses.replace(plan, layout=layout), software) for name, layout in _other_layouts(plan.layout)
    ]
    changed += [(name, plan, other) for name, other in _other_software(software)]
    return [(name, predict(other_plan, cluster, other)) for name, other_plan, other in changed]


def _other_chunks(plan: Plan) -> list[int]:
    ranks = plan.layout.pipeline_model_parallel_size
    per_stage = plan.model.num_layers // ranks
    if ranks == 1:
        return []
    divisors = [chunks for chunks in range(1, per_stage + 1) if per_stage % chunks == 0]
    return [chunks for chunks in divisors if chunks != plan.layout.num_chunks]


def _divides(plan: Plan, batch: Batch) -> bool:
    try:
        dataclasses.replace(plan, batch=batch)
    except ValueError:
        return False
    return True


def _other_models(model: PlannedModel) -> list[tuple[str, PlannedModel]]:
    """The other FFN form with as many weights, full recompute, no biases, grouped queries."""
    gated = not model.gated_linear_unit
    width = round(model.ffn_hidden_size * (2 / 3 if gated else 3 / 2) / 128) * 128
    others = [
        ("SwiGLU" if gated else "GELU", dataclasses.replace(model, gated_linear_unit=gated, ffn_hidden_size=width)),
        ("full recompute", dataclasses.replace(model, recompute="full")),
    ]
    if model.linear_bias:
        others.append(("no biases", dataclasses.replace(model, linear_bias=False)))
    if model.num_query_groups > 8 and model.num_attention_heads % 8 == 0:
        others.append(("8 query groups", dataclasses.replace(model, num_query_groups=8)))
    return others


def _other_software(software: Software) -> list[tuple[str, Software]]:
    fused = not software.fused_accumulation
    kernel: Literal["flash", "flex"] = "flex" if software.attention == "flash" else "flash"
    return [
        (f"weight gradients {'' if fused else 'not '}fused", dataclasses.replace(software, fused_accumulation=fused)),
        (f"{kernel} attention", dataclasses.replace(software, attention=kernel)),
    ]


def _other_layouts(layout: Layout) -> list[tuple[str, Layout]]:
    others = [
        ("no DP overlap", dataclasses.replace(layout, overlap_grad_reduce=False, overlap_param_gather=False)),
    ]
    if layout.tp_comm_overlap:
        others.append(("no TP overlap", dataclasses.replace(layout, tp_comm_overlap=False)))
    return others
