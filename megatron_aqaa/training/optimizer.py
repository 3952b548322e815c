"""Optimizer and learning-rate schedule of the language model, through Megatron-Core."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_aqaa import platform
from megatron_aqaa.training.adam import Adam


@dataclass(frozen=True)
class OptimizerConfig:
    """Learning rates and AdamW settings; rates are those of the backbone.

    Attributes:
        learning_rate: peak of the schedule.
        min_learning_rate: end of the schedule.
        embedding_rate_multiplier: embedding and output head learn this much faster (Step-Audio stage 1: 5).
        warmup_steps: linear warm-up from zero.
        decay_style: `"WSD"` keeps the peak and decays over the last `decay_ratio` of the steps.
        decay_ratio: share of the steps that `"WSD"` decays over.
    """

    learning_rate: float
    min_learning_rate: float = 0.0
    embedding_rate_multiplier: float = 1.0
    warmup_steps: int = 0
    decay_style: Literal["cosine", "linear", "constant", "WSD"] = "cosine"
    decay_ratio: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    clip_grad: float = 1.0


def build_optimizer(
    model_chunks: list[Any], config: OptimizerConfig, params_dtype: torch.dtype, *, decay_tables: bool = True
) -> MegatronOptimizer:
    """Megatron's distributed optimizer over DDP-wrapped `model_chunks`.

    Weight decay is left off for vectors; embedding and head get their own rate. Where Megatron chose torch's
    AdamW (no Transformer Engine, no apex), it becomes `training.adam.Adam`.

    Args:
        model_chunks: one per virtual pipeline stage.
        config: learning rates and AdamW settings.
        params_dtype: of the weights.
        decay_tables: weight decay on embedding and head; off where some of their rows must not change.
    """
    megatron_config = MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.learning_rate,
        min_lr=config.min_learning_rate,
        decoupled_lr=config.learning_rate * config.embedding_rate_multiplier,
        decoupled_min_lr=config.min_learning_rate * config.embedding_rate_multiplier,
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        adam_eps=config.epsilon,
        clip_grad=config.clip_grad,
        bf16=params_dtype == torch.bfloat16,
        params_dtype=params_dtype,
        use_distributed_optimizer=True,
        overlap_param_gather=model_chunks[0].ddp_config.overlap_param_gather,
    )
    overrides = get_standard_config_overrides(megatron_config)
    for override in overrides.values():
        if "max_lr" in override:
            # Megatron tells parameter groups apart by this flag when it loads a checkpoint, but 0.16.1 forgets to set
            # it: after a resume the backbone would silently learn at the embedding's rate.
            override["is_decoupled_lr"] = True
            if not decay_tables:
                override["wd_mult"] = 0.0
    optimizer = get_megatron_optimizer(
        megatron_config,
        model_chunks,
        config_overrides=overrides,
        use_gloo_process_groups=platform.device().type == "cuda",  # on the CPU every group is gloo already
    )
    parts = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    for part in parts:
        if type(part.optimizer) is torch.optim.AdamW:
            Adam.adopt(part.optimizer)
    return optimizer


def gather_weights(model_chunks: list[Any]) -> None:
    """Make the weights whole on every rank, which `overlap_param_gather` leaves to the next forward pass.

    Needed wherever weights are read or replaced between steps: a checkpoint would hold those of the step before.

    Args:
        model_chunks: DDP-wrapped, one per virtual pipeline stage.
    """
    for chunk in model_chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def build_scheduler(optimizer: MegatronOptimizer, config: OptimizerConfig, steps: int) -> OptimizerParamScheduler:
    """Schedule over `steps` optimizer steps; call `.step(1)` after each."""
    if config.warmup_steps >= steps:
        raise ValueError(f"optimizer.warmup_steps = {config.warmup_steps} must be below training.steps = {steps}")
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.learning_rate,
        min_lr=config.min_learning_rate,
        lr_warmup_steps=config.warmup_steps,
        lr_decay_steps=steps,
        lr_decay_style=config.decay_style,
        wsd_decay_steps=math.ceil(config.decay_ratio * steps),
        lr_wsd_decay_style="linear",
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
    )


def backbone_learning_rate(optimizer: MegatronOptimizer) -> float:
    """Current learning rate of the parameters without a rate of their own; with these frozen, of the tables."""
    return float(min(group["lr"] for group in optimizer.param_groups))
