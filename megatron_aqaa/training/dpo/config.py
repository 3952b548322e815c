"""Everything that a preference-optimization run is made of: the record of a language-model run, and section `dpo`."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from megatron_aqaa.data.preferences import TargetKind
from megatron_aqaa.training.dpo.losses import PreferenceLoss
from megatron_aqaa.training.lm_config import TrainConfig


@dataclass(frozen=True)
class DPOConfig(PreferenceLoss):
    """The loss, what it reads, and what it holds the policy to.

    Attributes:
        loss_mask: targets of an answer that carry preference: `text` (text pieces and markers; Step-Audio-AQAA masks
            the audio codes out, because text and audio came apart without), `audio`, or `all`.
        nll_weight: weight of an added term: mean negative log-probability per token of the chosen answer.
        nll_mask: targets that this term is taken over; None: those of `loss_mask`. Without the term it must be None.
        reference: `precomputed`: log-probabilities of the reference are computed once and kept in the run directory.
            `weight_swap`: its weights wait on the CPU and take the policy's place for a forward pass in every step.
        reference_checkpoint: run or checkpoint directory of the reference; None: `training.init_from`.
    """

    _: KW_ONLY
    loss_mask: TargetKind = "text"
    nll_weight: float = 0.0
    nll_mask: TargetKind | None = None
    reference: Literal["precomputed", "weight_swap"] = "precomputed"
    reference_checkpoint: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.nll_weight >= 0 and math.isfinite(self.nll_weight)):
            raise ValueError(f"dpo.nll_weight = {self.nll_weight}: must be at least 0")
        if self.nll_mask is not None and not self.nll_weight:
            raise ValueError(f"dpo.nll_mask: {self.nll_mask} has no effect with nll_weight: 0; set a weight or drop it")

    @property
    def nll_targets(self) -> TargetKind:
        """Targets of chosen answers whose log-probability is logged and, given a weight, learned."""
        return self.nll_mask or self.loss_mask


@dataclass(frozen=True)
class DPOTrainConfig(TrainConfig):
    """A preference-optimization run.

    Of `data`, the prefixes are preference data sets. They are pooled: every pair comes once an epoch, so their weights
    are 1. A sequence holds whole pairs; batch sizes count sequences.
    """

    _: KW_ONLY
    dpo: DPOConfig

    def __post_init__(self) -> None:
        data, loop = self.data, self.training
        if loop.init_from is None:
            raise ValueError("training.init_from: preference optimization starts from a checkpoint; name its run")
        if loop.grow_vocabulary or loop.code_vectors:
            raise ValueError(
                "training.grow_vocabulary and code_vectors make new rows, which no reference knows; leave them out"
            )
        if data.packing != "whole":
            raise ValueError("data.packing: pairs are never torn; set it to `whole`")
        if (data.text_loss_weight, data.audio_loss_weight) != (1, 1):
            raise ValueError("data: text_loss_weight and audio_loss_weight have no effect here; use dpo.loss_mask")
        if data.audio_noise_ratio or data.cache_directory:
            raise ValueError("data: audio_noise_ratio and cache_directory have no effect here; leave them out")
        weights = sorted(set(data.train.values()))
        if weights != [1.0]:
            raise ValueError(f"data.train: preference data sets are pooled, weights must be 1, found {weights}")

    @property
    def reference_checkpoint(self) -> Path:
        """Run or checkpoint directory of the reference."""
        path = self.dpo.reference_checkpoint or self.training.init_from
        assert path is not None
        return path
