"""What a plan needs and gives: memory, seconds, throughput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_aqaa.planner.cluster import Cluster
from megatron_aqaa.planner.flops import audio_hours, model_flops_per_token
from megatron_aqaa.planner.memory import RankMemory, memory_by_rank
from megatron_aqaa.planner.plan import Plan, Software
from megatron_aqaa.planner.step_time import StepTime, step_time

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Prediction:
    """What a plan needs and gives."""

    plan: Plan
    memory: Sequence[RankMemory]
    time: StepTime
    tokens_per_second: float
    model_flops: float
    peak_flops: float

    @property
    def peak_bytes(self) -> int:
        """Of the fullest rank."""
        return max(rank.total for rank in self.memory)

    @property
    def flops_per_gpu(self) -> float:
        """Model FLOP/s of one GPU."""
        return self.model_flops * self.tokens_per_second / self.plan.num_gpus

    @property
    def mfu(self) -> float:
        """Share of the data sheet's bf16 (or fp32) rate."""
        return self.flops_per_gpu / self.peak_flops

    @property
    def tokens_per_day(self) -> float:
        """Tokens of 24 hours without a stop."""
        return self.tokens_per_second * SECONDS_PER_DAY

    @property
    def audio_hours_per_day(self) -> float:
        """Hours of speech, were all tokens audio."""
        return audio_hours(self.tokens_per_day)


def predict(plan: Plan, cluster: Cluster, software: Software, *, played: bool = True) -> Prediction:
    """Memory and speed of `plan`; `played` as for `step_time`."""
    memory = memory_by_rank(plan)
    time = step_time(plan, cluster, software, memory, played=played)
    tokens = plan.batch.global_batch_size * plan.batch.sequence_length
    return Prediction(
        plan,
        memory,
        time,
        tokens / time.total,
        model_flops_per_token(plan.model, plan.batch.sequence_length),
        cluster.peak(plan.model.params_dtype),
    )
