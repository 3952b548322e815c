"""One way to run a model on a number of GPUs: what memory and time are asked of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from megatron_aqaa.planner.layout import Layout, Stages, stages
from megatron_aqaa.planner.planned_model import PlannedModel


@dataclass(frozen=True)
class Batch:
    """What one optimizer step reads.

    Attributes:
        sequence_length: tokens of a sequence.
        micro_batch_size: sequences per forward pass of one data-parallel rank.
        global_batch_size: sequences per step.
    """

    sequence_length: int
    micro_batch_size: int
    global_batch_size: int

    def __post_init__(self) -> None:
        for name in ("sequence_length", "micro_batch_size", "global_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")


@dataclass(frozen=True)
class Software:
    """What the training software is made of.

    Attributes:
        attention: kernel, a name in the cluster's `attention`.
        fused_accumulation: weight gradients are added to fp32 inside the product (apex or Transformer Engine).
        loss_bytes: moved for each logit by softmax and loss, forward and backward: 8 by `vocab_parallel_logps` (twice
            read and written in bf16); 50 by Megatron's cross entropy, in a dozen passes over an fp32 copy.
    """

    attention: Literal["flash", "flex"] = "flex"
    fused_accumulation: bool = False
    loss_bytes: int = 8


AQAA = Software()
"""This project without apex: FlexAttention with square-root ALiBi."""
MEGATRON = Software(attention="flash", fused_accumulation=True, loss_bytes=50)
"""Megatron-LM with Transformer Engine, as its published runs."""


@dataclass(frozen=True)
class Plan:
    """A model, its layout and its batch on `data_parallel_size` copies."""

    model: PlannedModel
    layout: Layout
    batch: Batch
    data_parallel_size: int

    def __post_init__(self) -> None:
        per_pass = self.batch.micro_batch_size * self.data_parallel_size
        if self.batch.global_batch_size % per_pass:
            raise ValueError(
                f"training.global_batch_size = {self.batch.global_batch_size} must be a multiple of micro_batch_size × "
                f"data-parallel size = {self.batch.micro_batch_size} × {self.data_parallel_size}"
            )
        parts = 2 * self.layout.context_parallel_size if self.layout.context_parallel_size > 1 else 1
        parts *= self.layout.tensor_model_parallel_size if self.layout.sequence_parallel else 1
        if self.batch.sequence_length % parts:
            raise ValueError(f"data.sequence_length = {self.batch.sequence_length} must be a multiple of {parts}")
        ranks = self.layout.pipeline_model_parallel_size
        if self.layout.num_chunks > 1 and self.num_microbatches % ranks:
            raise ValueError(
                f"{self.num_microbatches} micro-batches per step must be a multiple of pipeline_model_parallel_size = "
                f"{ranks} for the interleaved schedule"
            )

    @classmethod
    def on(cls, num_gpus: int, model: PlannedModel, layout: Layout, batch: Batch) -> Plan:
        """The plan that fills `num_gpus`.

        Raises:
            ValueError: the GPUs are no whole number of copies, or the batch does not divide over them.
        """
        if num_gpus % layout.model_parallel_size:
            raise ValueError(
                f"{num_gpus} GPUs cannot hold copies of a model over {layout.model_parallel_size} "
                f"({layout.label}): give a multiple, or lower the sizes under `parallel`"
            )
        return cls(model, layout, batch, num_gpus // layout.model_parallel_size)

    @cached_property
    def stages(self) -> Stages:
        """Chunks of each pipeline rank."""
        return stages(self.model, self.layout)

    @property
    def num_gpus(self) -> int:
        """GPUs in all."""
        return self.data_parallel_size * self.layout.model_parallel_size

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of one data-parallel rank in one step."""
        return self.batch.global_batch_size // (self.batch.micro_batch_size * self.data_parallel_size)

    @property
    def num_shards(self) -> int:
        """Ranks that share the optimizer state."""
        return self.data_parallel_size * self.layout.context_parallel_size

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on one context-parallel rank."""
        return self.batch.micro_batch_size * self.batch.sequence_length // self.layout.context_parallel_size

    @property
    def hidden_tokens(self) -> int:
        """Of these, those whose residual stream one tensor-parallel rank keeps."""
        return self.tokens // (self.layout.tensor_model_parallel_size if self.layout.sequence_parallel else 1)

    @property
    def label(self) -> str:
        """Short name of the layout, micro-batch and recompute."""
        recompute = "" if self.model.recompute == "none" else f" recompute {self.model.recompute}"
        return f"{self.layout.label} DP{self.data_parallel_size} mbs{self.batch.micro_batch_size}{recompute}"
