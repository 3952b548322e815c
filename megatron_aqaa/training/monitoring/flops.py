"""Model FLOPs of a training step, and the peak rate that they are held against.

Forward, per position: 2 FLOPs for each weight of a layer's matrices (query, key, value, output, the three of SwiGLU),
and 2 · S · (heads × head width) for scores and weighted sum, causal: a query looks back on S/2 keys on average. The
output head counts 2 · H · V for each *target*, since only positions that carry loss go through it. Backward is twice
forward. Not counted: whatever recomputation does again, document borders (which take work away), padding (which
counts as if it were text), norms, rotations, softmax, and that frozen weights have no gradient.

Megatron-LM counts the same terms (`megatron/training/training.py: num_floating_point_operations`), with the head at
every position and over padded rows.
"""

from __future__ import annotations

from megatron_aqaa.model.config import ModelConfig

_FORWARD_AND_BACKWARD = 3

PEAK_TFLOPS = {
    "B200": 2250.0,
    "GB200": 2500.0,
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": 989.4,
    "H800": 989.4,
    "GH200": 989.4,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
}
"""Dense bf16 with fp32 accumulation, from NVIDIA's data sheets, by a part of the device's name."""


def step_flops(
    model: ModelConfig, vocabulary_size: int, sequence_length: int, positions: float, targets: float
) -> float:
    """Model FLOPs of one optimizer step.

    Args:
        model: size and kind.
        vocabulary_size: rows that enter the softmax.
        sequence_length: S.
        positions: of all sequences of the global batch, padding included.
        targets: positions that went through the output head.
    """
    head_width = model.kv_channels or model.hidden_size // model.num_attention_heads
    query, key_value = model.num_attention_heads * head_width, model.num_query_groups * head_width
    matrices = model.hidden_size * (2 * query + 2 * key_value + 3 * model.ffn_hidden_size)
    layers = model.num_layers * (2.0 * matrices + 2.0 * sequence_length * query)
    head = 2.0 * model.hidden_size * vocabulary_size
    return _FORWARD_AND_BACKWARD * (positions * layers + targets * head)


def peak_tflops(device_name: str) -> float | None:
    """Of the GPU of this name, or None where it is not known. The longest entry that is part of the name counts."""
    known = [name for name in PEAK_TFLOPS if name in device_name]
    return PEAK_TFLOPS[max(known, key=len)] if known else None
