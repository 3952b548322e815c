"""Bytes on each rank: parameters, gradients and optimizer state exactly; activations as the layers keep them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from megatron_aqaa.planner.buffers import buckets, buffer_numel, shard_numel
from megatron_aqaa.planner.layout import Chunk, Layout
from megatron_aqaa.planner.parameters import chunk_parameters
from megatron_aqaa.planner.plan import Plan
from megatron_aqaa.planner.planned_model import BYTES, PlannedModel

GRADIENT_BYTES = 4  # main_grad is fp32 whatever the parameters are
LOGITS_BLOCK = 1 << 26
"""Logits that `recompute_logits` holds at a time on a GPU (`ops/vocab_parallel_logps.py`)."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank at the peak of a step.

    Attributes:
        parameters: their buffers, padding included.
        gradients: fp32 buffers, padding included.
        optimizer: fp32 copy of bf16 parameters, and two moments, of this rank's shard.
        activations: what forward keeps for backward, of all micro-batches in flight.
        logits: of the head, one micro-batch.
        working: tensors that live only while a layer runs.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int = 0
    logits: int = 0
    working: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits + self.working


@lru_cache(maxsize=16)  # a search looks at the memory of a plan first, and then at its time
def memory_by_rank(plan: Plan) -> tuple[RankMemory, ...]:
    """Of each pipeline rank; tensor-, context- and data-parallel neighbours hold the same, up to padding."""
    return tuple(rank_memory(plan, rank) for rank in range(plan.layout.pipeline_model_parallel_size))


def rank_memory(plan: Plan, rank: int, shard: int = 0) -> RankMemory:
    """Of pipeline rank `rank`, on data-parallel rank `shard`."""
    chunks = plan.stages[rank]
    parameters, gradients, optimizer = state_bytes(plan.model.state, plan.layout, chunks, plan.num_shards, shard)
    of_layer = layer_bytes(plan)
    has_head = any(chunk.head for chunk in chunks)
    return RankMemory(
        parameters,
        gradients,
        optimizer,
        sum(count * chunk.num_layers * of_layer for count, chunk in zip(in_flight(plan, rank), chunks, strict=True)),
        logits_bytes(plan) if has_head else 0,
        working_bytes(plan, has_head),
    )


@lru_cache(maxsize=4096)
def state_bytes(
    model: PlannedModel, layout: Layout, chunks: tuple[Chunk, ...], num_shards: int, shard: int
) -> tuple[int, int, int]:
    """Parameters, gradients, optimizer state: what Megatron allocates, to the byte."""
    element = BYTES[model.params_dtype]
    of_optimizer = 8 if element == 4 else 12  # fp32 parameters are their own main copy
    numel = owned = 0
    for chunk in chunks:
        laid_out = buckets(chunk_parameters(model, layout, chunk), num_shards, bucket_size(layout, chunk, num_shards))
        numel += buffer_numel(laid_out)
        owned += shard_numel(laid_out, num_shards, shard)
    return numel * element, numel * GRADIENT_BYTES, owned * of_optimizer


def bucket_size(layout: Layout, chunk: Chunk, num_shards: int) -> int | None:
    """Elements of a bucket: Megatron cuts only the chunk whose communication delays a step, that of the embedding."""
    if not (layout.overlap_grad_reduce and chunk.embedding):
        return None
    return max(40_000_000, 1_000_000 * num_shards // layout.context_parallel_size)


@lru_cache(maxsize=4096)
def _last_bucket(model: PlannedModel, layout: Layout, chunk: Chunk, num_shards: int) -> int:
    last = buckets(chunk_parameters(model, layout, chunk), num_shards, bucket_size(layout, chunk, num_shards))[-1]
    return last.stop - last.start


def embedding_bucket(plan: Plan) -> int:
    """Elements of the bucket whose gradients are ready last."""
    return _last_bucket(plan.model, plan.layout, plan.stages[0][0], plan.num_shards)


def in_flight(plan: Plan, rank: int) -> list[int]:
    """Micro-batches whose activations each chunk of `rank` keeps at the peak: after warm-up and one more forward."""
    ranks, chunks, total = plan.layout.pipeline_model_parallel_size, plan.layout.num_chunks, plan.num_microbatches
    if chunks == 1:
        return [min(total, ranks - rank)]
    steps = min(total * chunks, 2 * (ranks - rank - 1) + (chunks - 1) * ranks + 1)
    rounds, rest = divmod(steps, ranks * chunks)
    return [rounds * ranks + min(ranks, max(0, rest - chunk * ranks)) for chunk in range(chunks)]


def layer_bytes(plan: Plan) -> int:
    """What one layer keeps of one micro-batch for backward, on this rank; no S × S matrix is ever kept.

    Input and output of both norms (residual width); query, key, value and attention's output; gate, up and their
    product. Under context parallelism keys and values are kept as gathered.
    """
    model, tensor = plan.model, plan.layout.tensor_model_parallel_size
    element = BYTES[model.params_dtype]
    residual = plan.hidden_tokens * model.hidden_size * element
    if model.recompute == "full":
        return residual
    widths = model.qkv_size + model.query_size
    if model.recompute != "mlp":
        widths += model.fc1_size + model.ffn_hidden_size
    kept = 4 * residual + plan.tokens * widths * element // tensor
    if model.recompute == "attention":
        return kept
    log_sums = 4 * plan.tokens * model.num_attention_heads // tensor
    key_value = (model.qkv_size - model.query_size) * element // tensor
    return kept + log_sums + (plan.layout.context_parallel_size - 1) * plan.tokens * key_value


def logits_bytes(plan: Plan) -> int:
    """Of the head on the last rank: probabilities of a micro-batch and a block in fp32, or such blocks alone."""
    hidden = plan.tokens * plan.model.hidden_size * BYTES[plan.model.params_dtype]
    logits = plan.tokens * plan.model.rows // plan.layout.tensor_model_parallel_size
    blocks = 4 * plan.tokens * plan.model.hidden_size + 2 * 4 * min(LOGITS_BLOCK, logits)
    return hidden + blocks + (0 if plan.model.recompute_logits else logits * BYTES[plan.model.params_dtype])


def working_bytes(plan: Plan, has_head: bool) -> int:
    """Gathered input and its gradient, the FFN's gradients, the largest weight gradient before it is added up.

    With full recompute also what the layer under way keeps.
    """
    model, tensor = plan.model, plan.layout.tensor_model_parallel_size
    element = BYTES[model.params_dtype]
    gathered = 2 * plan.tokens * model.hidden_size * element
    ffn = plan.tokens * (model.fc1_size + model.ffn_hidden_size) * element // tensor
    matrices = [outputs * inputs for outputs, inputs in model.layer_matrices]
    if has_head and not model.recompute_logits:
        matrices.append(model.rows * model.hidden_size)
    working = gathered + ffn + max(matrices) * element // tensor
    if model.recompute == "full":
        widths = model.qkv_size + model.query_size + model.fc1_size + model.ffn_hidden_size
        working += 3 * plan.hidden_tokens * model.hidden_size * element + plan.tokens * widths * element // tensor
    return working
