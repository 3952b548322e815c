"""Fused operators with their references, and host-side index building. Importing this registers the operators."""

from megatron_aqaa.ops.accumulate_rows import accumulate_rows_
from megatron_aqaa.ops.code_pair_embedding import code_pair_embedding
from megatron_aqaa.ops.dual_codebook_embedding import dual_codebook_embedding, positions_in_group
from megatron_aqaa.ops.index import (
    Codes,
    PackingPlan,
    deinterleave_codes,
    interleave_codes,
    interleave_text_audio,
    packing_plan,
)
from megatron_aqaa.ops.linear_vocab_parallel_logps import linear_vocab_parallel_logps
from megatron_aqaa.ops.main_grad import accumulates_in_main_grad
from megatron_aqaa.ops.vocab_parallel_logps import vocab_parallel_cross_entropy, vocab_parallel_logps

__all__ = [
    "Codes",
    "PackingPlan",
    "accumulate_rows_",
    "accumulates_in_main_grad",
    "code_pair_embedding",
    "deinterleave_codes",
    "dual_codebook_embedding",
    "interleave_codes",
    "interleave_text_audio",
    "linear_vocab_parallel_logps",
    "packing_plan",
    "positions_in_group",
    "vocab_parallel_cross_entropy",
    "vocab_parallel_logps",
]
