"""Why a plan loses against another, or does not fit."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_aqaa.planner.cluster import GIB, Cluster
from megatron_aqaa.planner.memory import memory_by_rank
from megatron_aqaa.planner.plan import Plan
from megatron_aqaa.planner.prediction import Prediction


@dataclass(frozen=True)
class Misfit:
    """A plan that does not fit, and how many bytes it lacks on its fullest rank."""

    plan: Plan
    lacking: float
    rank: int


def fit(plan: Plan, cluster: Cluster) -> Misfit | None:
    """None if every rank fits."""
    totals = [rank.total for rank in memory_by_rank(plan)]
    rank = max(range(len(totals)), key=lambda index: totals[index])
    lacking = totals[rank] - cluster.usable_bytes
    return Misfit(plan, lacking, rank) if lacking > 0 else None


def losses(prediction: Prediction, best: Prediction) -> dict[str, float]:
    """Seconds by which each part of a step is longer than in `best`, where it is."""
    theirs, ours = _parts(best), _parts(prediction)
    longer = {name: ours[name] - theirs[name] for name in ours}
    return dict(sorted(((name, s) for name, s in longer.items() if s > 0), key=lambda item: -item[1]))


def reason(prediction: Prediction, best: Prediction) -> str:
    """Why a layout is slower than `best`, in a line."""
    slower = prediction.time.total - best.time.total
    if slower <= 0:
        return "fastest"
    shares = [
        f"{name} +{100 * seconds / best.time.total:.1f} %"
        for name, seconds in losses(prediction, best).items()
        if seconds > 0.15 * slower
    ]
    return ", ".join(shares[:3])


def misfit_reason(misfit: Misfit) -> str:
    """What fills the rank that does not fit."""
    rank = memory_by_rank(misfit.plan)[misfit.rank]
    sizes = {
        "parameters, gradients and optimizer": rank.parameters + rank.gradients + rank.optimizer,
        "activations": rank.activations,
        "logits": rank.logits,
    }
    largest = max(sizes, key=lambda name: sizes[name])
    return (
        f"lacks {misfit.lacking / GIB:.1f} GiB on pipeline rank {misfit.rank}: {largest} take "
        f"{sizes[largest] / GIB:.1f} GiB"
    )


def _parts(prediction: Prediction) -> dict[str, float]:
    time = prediction.time
    products, attention, small, tensor, context = time.rank.parts
    return {
        "products": products,
        "attention": attention,
        "small kernels": small,
        "tensor-parallel communication": tensor,
        "context-parallel communication": context,
        "transfers between stages": time.stages,
        "bubble": time.bubble,
        "slowest GPU": time.slowest_gpu,
        "data-parallel communication": time.data,
        "optimizer": time.optimizer,
    }
