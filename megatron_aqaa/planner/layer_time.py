"""Seconds of one layer, of the embedding and of the head, for one micro-batch on one rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from megatron_aqaa.planner.cluster import Cluster
from megatron_aqaa.planner.plan import Plan, Software
from megatron_aqaa.planner.slice import MICRO, Seconds, Slice
from megatron_aqaa.planner.tensor_transfers import backward_transfers, forward_transfers

ATTENTION_BACKWARD = 2.5  # five products where forward has two
FORWARD_KERNELS, BACKWARD_KERNELS = 8, 12  # small ones of a layer: norms, adds, activation, layout of heads


@dataclass(frozen=True)
class Times:
    """Forward and backward of a layer, the embedding and the head."""

    layer_forward: Seconds
    layer_backward: Seconds
    embedding: Seconds
    head_forward: Seconds
    head_backward: Seconds


def times(plan: Plan, cluster: Cluster, software: Software) -> Times:
    """Of the layers of `plan`; computed once for all plans that cut a layer alike."""
    return _times(Slice.of(plan, cluster, software))


@lru_cache(maxsize=4096)
def _times(part: Slice) -> Times:
    forward, backward = _forward(part), _backward(part)
    if part.model.recompute == "full":
        backward = backward + forward
    elif part.model.recompute == "attention":
        backward = backward + Seconds(attention=forward.attention, context=forward.context)
    elif part.model.recompute == "mlp":
        backward = backward + _mlp(part)
    return Times(forward, backward, _embedding(part), _head_forward(part), _head_backward(part))


def _forward(part: Slice) -> Seconds:
    products = [part.product_s(part.tokens, outputs, inputs, part.element) for outputs, inputs in part.matrices]
    attention = _attention_s(part, backward=False)
    return Seconds(sum(products), attention, _small_forward(part), forward_transfers(part, products), _context(part))


def _backward(part: Slice) -> Seconds:
    accumulated = 8 if part.software.fused_accumulation else part.element
    inputs_s = [part.product_s(part.tokens, inputs, outputs, part.element) for outputs, inputs in part.matrices]
    weights_s = [part.product_s(outputs, inputs, part.tokens, accumulated) for outputs, inputs in part.matrices]
    attention = _attention_s(part, backward=True)
    tensor = backward_transfers(part, inputs_s, weights_s)
    return Seconds(sum(inputs_s) + sum(weights_s), attention, _small_backward(part), tensor, _context(part))


def _mlp(part: Slice) -> Seconds:
    """Forward of the FFN alone."""
    products = [part.product_s(part.tokens, outputs, inputs, part.element) for outputs, inputs in part.matrices[2:]]
    moved = part.tokens * (part.model.fc1_size + part.model.ffn_hidden_size) * part.element / part.tensor_size
    return Seconds(sum(products), small=part.memory_s(moved), tensor=forward_transfers(part, products))


def _attention_s(part: Slice, *, backward: bool) -> float:
    """Operations of the causal half at the kernel's rate."""
    rate = part.cluster.attention_rate(part.software.attention)
    limit = (rate.backward_tflops if backward else rate.forward_tflops) * 1e12
    operations = 2.0 * part.tokens * part.sequence_length * part.model.query_size / part.tensor_size
    reached = limit * part.sequence_length / (part.sequence_length + rate.half_length)
    return operations * (ATTENTION_BACKWARD if backward else 1.0) / reached


def _small_forward(part: Slice) -> float:
    """Two norms (read, write), two residual adds (two reads, a write), layout of the heads, activation."""
    widths = 2 * part.model.qkv_size + part.model.fc1_size + part.model.ffn_hidden_size
    moved = 10 * part.residual_bytes + part.tokens * widths * part.element / part.tensor_size
    return part.memory_s(moved) + FORWARD_KERNELS * part.cluster.kernel_overhead_us * MICRO


def _small_backward(part: Slice) -> float:
    model = part.model
    widths = 2 * model.qkv_size + 2 * model.fc1_size + model.ffn_hidden_size
    moved = 12 * part.residual_bytes + part.tokens * widths * part.element / part.tensor_size
    if model.linear_bias:  # their gradients are sums over the products' output gradients
        moved += (
            part.tokens * (model.qkv_size + model.fc1_size + 2 * model.hidden_size) * part.element / part.tensor_size
        )
    if not part.software.fused_accumulation:  # each weight gradient is read, and added to its fp32 main_grad
        moved += sum(outputs * inputs for outputs, inputs in part.matrices) * (part.element + 8)
    return part.memory_s(moved) + BACKWARD_KERNELS * part.cluster.kernel_overhead_us * MICRO


def _context(part: Slice) -> float:
    """Keys and values are gathered over the context-parallel ranks; their gradients are summed on the way back."""
    width = part.model.qkv_size - part.model.query_size
    gathered = part.tokens * part.context_size * width * part.element / part.tensor_size
    return part.cluster.collective_s(gathered, part.context_size, part.tensor_size)


def _embedding(part: Slice) -> Seconds:
    """Lookup and its gradient, which is added to the fp32 table row by row."""
    transfers = 2 if part.sequence_parallel else 3
    return Seconds(small=part.memory_s(14 * part.hidden_bytes), tensor=transfers * part.collective_s(part.hidden_bytes))


def _head_forward(part: Slice) -> Seconds:
    columns = part.model.rows // part.tensor_size
    product = part.product_s(part.tokens, columns, part.model.hidden_size, part.element, part.model.params_dtype)
    tensor = part.collective_s(part.hidden_bytes) if part.sequence_parallel else 0.0
    return Seconds(product, small=_loss_s(part), tensor=tensor)


def _head_backward(part: Slice) -> Seconds:
    model, columns = part.model, part.model.rows // part.tensor_size
    dtype = model.params_dtype
    fused = part.software.fused_accumulation
    product = part.product_s(part.tokens, model.hidden_size, columns, part.element, dtype)
    product += part.product_s(columns, model.hidden_size, part.tokens, 8 if fused else part.element, dtype)
    if model.recompute_logits:
        product += part.product_s(part.tokens, columns, model.hidden_size, part.element, dtype)
    added = 0 if fused else columns * model.hidden_size * (part.element + 8)
    small = part.memory_s(added) + _loss_s(part)
    return Seconds(product, small=small, tensor=2 * part.collective_s(part.hidden_bytes))


def _loss_s(part: Slice) -> float:
    """Half of what softmax and loss take in forward and backward together."""
    return part.memory_s(0.5 * part.software.loss_bytes * part.tokens * part.model.rows / part.tensor_size)
