"""Fused operators with their references, and host-side index building. Importing this registers the operators."""

from megatron_aqaa.ops.accumulate_rows import accumulate_rows_
from megatron_aqaa.ops.dual_codebook_embedding import (
    accumulates_in_main_grad,
    dual_codebook_embedding,
    positions_in_group,
)
from megatron_aqaa.ops.index import (
    Codes,
    PackingPlan,
    deinterleave_codes,
    interleave_codes,
    interleave_text_audio,
    packing_plan,
)

__all__ = [
    "Codes",
    "PackingPlan",
    "accumulate_rows_",
    "accumulates_in_main_grad",
    "deinterleave_codes",
    "dual_codebook_embedding",
    "interleave_codes",
    "interleave_text_audio",
    "packing_plan",
    "positions_in_group",
]
