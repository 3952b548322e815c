"""Floating-point operations of a model: what throughput and MFU are counted in."""

from __future__ import annotations

from megatron_aqaa.planner.planned_model import PlannedModel

TOKENS_PER_AUDIO_SECOND = 5 / 0.12
"""Five tokens every 120 ms: two linguistic, three semantic."""


def model_flops_per_token(model: PlannedModel, sequence_length: int, *, whole_attention: bool = True) -> float:
    """Operations of forward and backward for one token, whatever is computed again.

    Six for every weight of the layers' matrices and the head; attention's two products over `sequence_length` keys.

    Args:
        model: the model.
        sequence_length: tokens of a sequence.
        whole_attention: count the whole S × S square, as Megatron-LM did when its table was published; False: the
            causal half, as its `num_floating_point_operations` does since 2025.
    """
    weights = sum(outputs * inputs for outputs, inputs in model.layer_matrices)
    attention = 2 * sequence_length * model.query_size * (1.0 if whole_attention else 0.5)
    head = model.rows * model.hidden_size
    return 6.0 * (model.num_layers * (weights + attention) + head)


def audio_hours(tokens: float) -> float:
    """Hours of speech in so many audio tokens."""
    return tokens / TOKENS_PER_AUDIO_SECOND / 3600
