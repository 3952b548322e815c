"""Models, batches and a cluster that the planner's tests share."""

from __future__ import annotations

from pathlib import Path

from megatron_aqaa.planner.cluster import Cluster, load_cluster
from megatron_aqaa.planner.layout import Layout
from megatron_aqaa.planner.plan import Batch, Plan
from megatron_aqaa.planner.planned_model import PlannedModel

CLUSTERS = Path(__file__).parent.parent.parent / "examples" / "clusters"

RELEASED_130B = PlannedModel(
    num_layers=88, hidden_size=12288, ffn_hidden_size=31232, num_attention_heads=96, num_query_groups=8
)
RELEASED_3B = PlannedModel(
    num_layers=32, hidden_size=3072, ffn_hidden_size=8192, num_attention_heads=48, num_query_groups=4
)
SMALL = PlannedModel(
    num_layers=8, hidden_size=1024, ffn_hidden_size=2816, num_attention_heads=16, num_query_groups=4, vocab_size=5282
)


def h100() -> Cluster:
    return load_cluster(CLUSTERS / "h100.yaml")


def small_plan(
    layout: Layout | None = None, data_parallel_size: int = 2, micro: int = 1, batch: int = 16, length: int = 2048
) -> Plan:
    return Plan(SMALL, layout or Layout(), Batch(length, micro, batch), data_parallel_size)
