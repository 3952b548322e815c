"""Seconds of tensor-parallel transfers in a layer, as far as no product hides them."""

from __future__ import annotations

from megatron_aqaa.planner.slice import MICRO, Slice


def forward_transfers(part: Slice, products: list[float]) -> float:
    """An all-gather before qkv and fc1, a reduce-scatter after projection and fc2.

    Without sequence parallelism an all-reduce after the latter: as much, and nothing hides it.
    """
    transfer = part.collective_s(part.hidden_bytes)
    if part.tensor_overlap:
        return sum(_pipelined(part, transfer, product) for product in products)
    return len(products) * transfer


def backward_transfers(part: Slice, inputs_s: list[float], weights_s: list[float]) -> float:
    """Gradients are gathered before the products of projection and fc2, which wait for them.

    The rest is hidden behind a product without any software's help: inputs are gathered again beside the first
    product, and the gradients of qkv's and fc1's inputs are summed beside the product for their weights.
    """
    transfer = part.collective_s(part.hidden_bytes)
    qkv, projection, fc1, fc2 = inputs_s
    if not part.sequence_parallel:
        return sum(_hidden(part, 2 * transfer, product) for product in (weights_s[0], weights_s[2]))
    beside = sum(_hidden(part, transfer, product) for product in (qkv, weights_s[0], fc1, weights_s[2]))
    if part.tensor_overlap:
        return beside + _pipelined(part, transfer, projection) + _pipelined(part, transfer, fc2)
    return beside + 2 * transfer


def _pipelined(part: Slice, transfer: float, product: float) -> float:
    """A transfer in as many pieces as ranks, beside the pieces of the product: the first piece has none to hide it."""
    size = part.tensor_size
    if size == 1:
        return 0.0
    pieces_s = (size - 1) * part.cluster.gemm_overhead_us * MICRO
    return transfer / size + pieces_s + _hidden(part, transfer * (size - 1) / size, product)


def _hidden(part: Slice, transfer: float, product: float) -> float:
    """What a transfer beside a product costs: what sticks out, and the processors that it takes from the product."""
    return max(0.0, transfer - product) + part.cluster.overlap_cost(part.tensor_size, 1) * min(transfer, product)
