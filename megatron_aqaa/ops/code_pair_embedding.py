"""Two-column dual-codebook embedding: both codes of a frame in one pass (kernels: `csrc/ops/code_pair_embedding*`).

    out[..., :] = scale · (linguistic_weight[codes[..., 0]] + semantic_weight[codes[..., 1]])

or the two terms side by side; a code of −1 is absent and gives zeros. The form for models that go frame by frame, where
both codebooks speak of one moment: at 25 Hz a group is `linguistic = [a, b, −1]`, `semantic = [c, d, e]`.

A frame's output depends on its own codes alone, so the layout is the caller's: codes [B, F, 2] give [B, F, H], as the
vocoder's networks read it, and `codes.transpose(0, 1)` gives Megatron's [S, B, H], without a pass over the activations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_aqaa.ops import library
from megatron_aqaa.ops.table_gradient import Table

library.load_extension("_C")
_NAME = "megatron_aqaa::code_pair_embedding"


def code_pair_embedding(
    codes: Tensor,
    linguistic_weight: Tensor,
    semantic_weight: Tensor,
    *,
    concatenate: bool = False,
    scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
    deterministic: bool = True,
) -> Tensor:
    """Embeds pairs of codes.

    Args:
        codes: [..., 2] int64: linguistic, semantic; −1 is absent.
        linguistic_weight: [R, H].
        semantic_weight: [R', H'] of the same dtype; H' = H for a sum.
        concatenate: the terms side by side instead of their sum.
        scale: factor on both terms.
        out_dtype: of the result, and so of the gradient that comes back; None: the dtype of the tables. fp32 tables
            also give bf16 or fp16, and those also give fp32.
        deterministic: False lets a GPU add gradients atomically, see `accumulate_rows_`.

    Returns:
        [..., H], or [..., H + H'] concatenated, in `out_dtype`, summed in fp32 (fp64 for fp64) and rounded once.

    Raises:
        RuntimeError: a code lies outside its table (CPU, or MEGATRON_AQAA_CHECK_IDS=1; otherwise a GPU gives a row of
            NaN), or shapes disagree.
    """
    if library.CHECK_IDS:
        _check_codes(codes, (linguistic_weight.shape[0], semantic_weight.shape[0]))
    return torch.ops.megatron_aqaa.code_pair_embedding(
        codes, linguistic_weight, semantic_weight, concatenate, scale, out_dtype, deterministic
    )


def code_pair_embedding_reference(
    codes: Tensor,
    linguistic_weight: Tensor,
    semantic_weight: Tensor,
    concatenate: bool,
    scale: float,
    out_dtype: torch.dtype | None = None,
    deterministic: bool = True,
) -> Tensor:
    """The same in plain PyTorch, differentiable by autograd; arguments as the operator's schema has them."""
    sum_dtype = torch.promote_types(linguistic_weight.dtype, torch.float32)

    def term(codes: Tensor, weight: Tensor) -> Tensor:
        known = codes.clamp(0, weight.shape[0] - 1)
        return weight[known].to(sum_dtype).masked_fill((codes < 0)[..., None], 0)

    terms = [term(codes[..., i], weight) for i, weight in enumerate((linguistic_weight, semantic_weight))]
    out = scale * (torch.cat(terms, dim=-1) if concatenate else terms[0] + terms[1])
    rows = torch.tensor([linguistic_weight.shape[0], semantic_weight.shape[0]], device=codes.device)
    outside = ((codes < -1) | (codes >= rows)).any(dim=-1, keepdim=True)
    return out.masked_fill(outside, torch.nan).to(out_dtype or linguistic_weight.dtype)


def _check_codes(codes: Tensor, rows: tuple[int, int]) -> None:
    """Raises RuntimeError naming the first code outside its table; on a GPU this waits for the device."""
    outside = ((codes < -1) | (codes >= torch.tensor(rows, device=codes.device))).nonzero()
    if outside.numel():
        *place, column = outside[0].tolist()
        raise RuntimeError(
            f"{('linguistic', 'semantic')[column]} code {codes[(*place, column)].item()} at {place} "
            f"is outside [-1, {rows[column]})"
        )


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    codes, *weights, ctx.concatenate, ctx.scale, _, ctx.deterministic = inputs
    ctx.save_for_backward(codes)
    ctx.tables = [Table.of(weight) for weight in weights]
    ctx.widths = [weight.shape[1] for weight in weights]


def _backward(ctx: Any, grad_output: Tensor) -> tuple:
    (codes,) = ctx.saved_tensors
    gradient = grad_output.reshape(-1, grad_output.shape[-1])
    parts = gradient.split(ctx.widths, dim=1) if ctx.concatenate else (gradient, gradient)
    grads = [
        table.add_gradient(part, rows, ctx.scale, ctx.deterministic) if needed else None
        for table, part, rows, needed in zip(
            ctx.tables, parts, codes.reshape(-1, 2).unbind(1), ctx.needs_input_grad[1:3], strict=True
        )
    ]
    return None, *grads, None, None, None, None


def _fake(
    codes: Tensor,
    linguistic_weight: Tensor,
    semantic_weight: Tensor,
    concatenate: bool,
    scale: float,
    out_dtype: torch.dtype | None = None,
    deterministic: bool = True,
) -> Tensor:
    hidden = linguistic_weight.shape[1] + (semantic_weight.shape[1] if concatenate else 0)
    return linguistic_weight.new_empty(*codes.shape[:-1], hidden, dtype=out_dtype or linguistic_weight.dtype)


torch.library.register_fake(_NAME, _fake)
torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context)
if not library.built_with_cuda():
    torch.library.register_kernel(_NAME, "cuda", code_pair_embedding_reference)
