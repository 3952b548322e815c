"""One step of preference optimization.

The model gives token losses [B, S], zero but at positions that some term reads: only these went through the output
head. Their sums by answer are the log-probabilities that the loss is made of. Gradients are divided by the number of
pairs in the global batch, so the loss is the same for every micro-batch split and parallel layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from torch import Tensor

from megatron_aqaa.training.dpo.config import DPOConfig
from megatron_aqaa.training.dpo.losses import PairLogps, log_ratios, rewards
from megatron_aqaa.training.monitoring.guards import Judge, always
from megatron_aqaa.training.schedule import Batch, Loss, Update, Window, evaluate, global_sums, gradients, update

SUMS = (
    "pairs",
    "loss",
    "preference_loss",
    "nll",
    "reward_chosen",
    "reward_rejected",
    "accuracy",
    "logp_accuracy",
    "drift_chosen",
    "drift_rejected",
    "targets_chosen",
    "targets_rejected",
    "distance",
)
"""What the last stage adds up over pairs."""


@dataclass(frozen=True)
class DPOResult:
    """What one step reports; the same on every rank. All but the norm are means over the pairs of the global batch.

    Attributes:
        loss: as minimised: preference loss + nll_weight × nll.
        preference_loss: without the NLL term.
        nll: negative log-probability per token of the chosen answers, over the targets of `nll_mask`.
        reward_chosen: `beta` × log-ratio of policy and reference.
        reward_rejected: the same of the rejected answers.
        accuracy: share of pairs with a higher reward for the chosen answer.
        logp_accuracy: share of pairs whose chosen answer has the higher log-probability (sum over targets) under the
            policy itself.
        drift_chosen: log-ratio of policy and reference per token of the chosen answers.
        drift_rejected: the same of the rejected answers.
        distance: absolute log-ratio of an answer per token; not logged.
        tokens_per_pair: targets of both answers; not logged.
        targets: of all answers of the global batch, those that carry preference.
        grad_norm: global gradient norm before clipping.
        updated: False where the update was skipped.
    """

    loss: float
    preference_loss: float
    nll: float
    reward_chosen: float
    reward_rejected: float
    accuracy: float
    logp_accuracy: float
    drift_chosen: float
    drift_rejected: float
    distance: float
    tokens_per_pair: float
    targets: int = 0
    grad_norm: float = 0.0
    updated: bool = False
    audio_seconds: ClassVar[float | None] = None  # nobody counts it here

    @property
    def values(self) -> dict[str, float]:
        """What is logged beside the loss."""
        names = "preference_loss reward_chosen reward_rejected accuracy logp_accuracy drift_chosen drift_rejected nll"
        margin = self.reward_chosen - self.reward_rejected
        return {**{name: getattr(self, name) for name in names.split()}, "margin": margin}

    @property
    def counts(self) -> dict[str, int]:
        """What is logged of a training step's batch."""
        return {"targets": self.targets}


def dpo_step(
    model_chunks: list[Any],
    optimizer: MegatronOptimizer,
    window: Window,
    config: DPOConfig,
    shape: tuple[int, int],
    judge: Judge = always,
) -> DPOResult:
    """Run one step.

    Args:
        model_chunks: DDP-wrapped models of this rank, one per virtual pipeline stage.
        optimizer: Megatron optimizer over them.
        window: the batches of `PairRows`, with `reference_logps` [B, P, 2].
        config: the loss.
        shape: (micro-batch size, sequence length).
        judge: decides whether the step counts.
    """
    values = gradients(model_chunks, optimizer, [iter(own) for own in window], pair_loss(config), len(window[0]), shape)
    before = _result(global_sums(values, len(SUMS)))
    done: Update = update(optimizer, before.loss, judge)
    return dataclasses.replace(before, grad_norm=done.grad_norm, updated=done.updated)


def dpo_validation(
    model_chunks: list[Any], windows: Iterable[Window], config: DPOConfig, shape: tuple[int, int]
) -> DPOResult:
    """Means over the pairs of all `windows`, without a backward pass; arguments as in `dpo_step`."""
    totals = [
        global_sums(evaluate(model_chunks, [iter(own) for own in w], pair_loss(config), len(w[0]), shape), len(SUMS))
        for w in windows
    ]
    return _result(torch.stack(totals).sum(0))


def answer_logps(model_chunks: list[Any], window: Window, shape: tuple[int, int]) -> list[Tensor]:
    """Log-probabilities of answers over their preference targets, without a backward pass.

    Returns:
        [B, P, 2] (chosen, rejected) for each micro-batch; an empty list but on the last pipeline stage.
    """

    def loss(losses: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        return losses.sum(), losses.new_zeros((), dtype=torch.int), _sums_of_answers(losses, batch)[..., :2]

    return evaluate(model_chunks, [iter(own) for own in window], loss, len(window[0]), shape)


def answer_sums(values: Tensor, answer_ids: Tensor, num_pairs: int) -> Tensor:
    """Sums of `values` [B, S] by answer, [B, P, 2]: answer 2k is the chosen one of pair k, −1 is nobody's.

    A masked sum, since adding by index is in no fixed order on a GPU: a resumed run would differ.
    """
    answers = torch.arange(2 * num_pairs, device=answer_ids.device)
    belongs = answer_ids[:, None] == answers[:, None]
    return torch.where(belongs, values[:, None], 0).sum(-1).view(len(values), num_pairs, 2)


def _sums_of_answers(losses: Tensor, batch: Batch) -> Tensor:
    """[B, P, 3]: log-probability of chosen and rejected (preference targets), and of chosen (NLL targets).

    Under context parallelism every rank holds some positions of an answer. All get the sum and all compute the same
    loss; each one's gradient is that of its own positions, and Megatron adds these up.
    """
    num_pairs = batch["pairs"].shape[1]
    preference = answer_sums(-losses * batch["preference_mask"], batch["answer_ids"], num_pairs)
    nll = answer_sums(-losses * batch["nll_mask"], batch["answer_ids"], num_pairs)
    sums = torch.cat([preference, nll[..., :1]], -1)
    return reduce_from_tensor_model_parallel_region(sums, group=parallel_state.get_context_parallel_group())


def pair_loss(config: DPOConfig) -> Loss:
    """Sum over pairs, number of pairs, sums to log; only the first context-parallel rank counts."""

    def loss(losses: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        there = batch["pairs"] >= 0
        sums = _sums_of_answers(losses, batch)[there]
        reference, num_targets = batch["reference_logps"][there].to(sums), batch["num_targets"][there].to(sums)
        total, logged = _pair_sums(sums, reference, num_targets, config)
        counts = int(parallel_state.get_context_parallel_rank() == 0)
        return total, (there.sum() * counts).to(torch.int), logged.float() * counts

    return loss


def _pair_sums(sums: Tensor, reference: Tensor, num_targets: Tensor, config: DPOConfig) -> tuple[Tensor, Tensor]:
    """The sum to minimise, and `SUMS`, from [n, 3], [n, 2] and [n, 3]."""
    policy, reference_logps = PairLogps(sums[:, 0], sums[:, 1]), PairLogps(reference[:, 0], reference[:, 1])
    counts = PairLogps(num_targets[:, 0], num_targets[:, 1])
    ratios = log_ratios(config, policy, reference_logps, counts)
    preference = config(ratios.chosen - ratios.rejected)
    nll = -sums[:, 2] / num_targets[:, 2].clamp(min=1)  # 0 for a chosen answer without such targets
    total = (preference + config.nll_weight * nll).sum()
    with torch.no_grad():
        reward = rewards(config, ratios)
        drift = sums[:, :2] - reference
        by_name = {
            "pairs": torch.ones_like(nll),
            "loss": preference + config.nll_weight * nll,
            "preference_loss": preference,
            "nll": nll,
            "reward_chosen": reward.chosen,
            "reward_rejected": reward.rejected,
            "accuracy": reward.chosen > reward.rejected,
            "logp_accuracy": policy.chosen > policy.rejected,
            "drift_chosen": drift[:, 0],
            "drift_rejected": drift[:, 1],
            "targets_chosen": counts.chosen,
            "targets_rejected": counts.rejected,
            "distance": drift.abs().sum(1),
        }
        return total, torch.stack([by_name[name].sum().float() for name in SUMS])


def _result(totals: Tensor) -> DPOResult:
    sums = dict(zip(SUMS, totals.tolist(), strict=True))
    pairs, chosen, rejected = (sums.pop(name) for name in ("pairs", "targets_chosen", "targets_rejected"))
    targets = int(chosen + rejected)
    pairs, chosen, rejected = (max(count, 1.0) for count in (pairs, chosen, rejected))
    per = {"drift_chosen": chosen, "drift_rejected": rejected, "distance": chosen + rejected}
    means = {name: value / per.get(name, pairs) for name, value in sums.items()}
    return DPOResult(**means, tokens_per_pair=(chosen + rejected) / pairs, targets=targets)
