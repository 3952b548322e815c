"""Flat dual-codebook embedding: token ids to `[S, B, H]` in one pass (kernels: `csrc/ops/dual_codebook_embedding*`).

    out[s, b] = scale · (weight[id] + type_weight[modality(id)] + group_position_weight[position in group])

under vocabulary parallelism: a rank that does not hold `id` gives zeros, its owner gives all three terms, so the sum
over the tensor-parallel group holds each term once. For the same reason each rank's gradient of the two small tables
covers only its own tokens, and the owner of those tables sums them over the group.

Backward never builds a dense `[V, H]` gradient where Megatron's `main_grad` is at hand: see `table_gradient.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_aqaa.ops import library
from megatron_aqaa.ops.table_gradient import Table
from megatron_aqaa.vocabulary import GROUP_SIZE, MODALITY_NAMES

library.load_extension("_C")
_NAME = "megatron_aqaa::dual_codebook_embedding"


def dual_codebook_embedding(
    token_ids: Tensor,
    weight: Tensor,
    vocab_start_index: int = 0,
    *,
    vocab_size: int | None = None,
    type_weight: Tensor | None = None,
    group_position_weight: Tensor | None = None,
    group_positions: Tensor | None = None,
    linguistic_start: int = 0,
    semantic_start: int = 0,
    audio_stop: int = 0,
    scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
    deterministic: bool = True,
) -> Tensor:
    """Embeds token ids of text and audio.

    Args:
        token_ids: [B, S] int64.
        weight: [rows, H], this rank's slice of the word embeddings.
        vocab_start_index: token id of `weight[0]`.
        vocab_size: ids from there on are outside the vocabulary, although padded rows may stand for them; None: the
            vocabulary ends with the rows of this rank.
        type_weight: [3, H] for text, linguistic, semantic; needs the three range ends below.
        group_position_weight: [5, H] for the places of `[L L S S S]`.
        group_positions: [B, S] int64, −1 outside a group. None: counted from `token_ids`, which is right only where
            these hold whole sequences (no context parallelism, no incremental decoding).
        linguistic_start: first linguistic id.
        semantic_start: first semantic id, the end of the linguistic ones.
        audio_stop: end of the semantic ids; ids from there on count as text.
        scale: factor on the sum.
        out_dtype: of the result, and so of the gradient that comes back; None: the dtype of `weight`. fp32 tables also
            give bf16 or fp16, and those also give fp32.
        deterministic: False lets a GPU add gradients atomically, see `accumulate_rows_`.

    Returns:
        [S, B, H] in `out_dtype`; sums are taken in fp32 (fp64 for fp64) and rounded once.

    Raises:
        RuntimeError: an id lies outside the vocabulary or a group position outside [-1, 5) (CPU, or
            MEGATRON_AQAA_CHECK_IDS=1; otherwise a GPU gives a row of NaN), or shapes disagree.
        ValueError: a table was given without the ranges that it needs.
    """
    if type_weight is not None or group_position_weight is not None:
        _check_ranges(linguistic_start, semantic_start, audio_stop)
    if group_position_weight is None:
        group_positions = None
    elif group_positions is None:
        group_positions = positions_in_group(token_ids, linguistic_start, audio_stop)
    if vocab_size is None:
        vocab_size = vocab_start_index + weight.shape[0]
    if library.CHECK_IDS:
        check_ids(token_ids, vocab_size, group_positions)
    layout = (vocab_start_index, vocab_size, linguistic_start, semantic_start, audio_stop, scale)
    return torch.ops.megatron_aqaa.dual_codebook_embedding(
        token_ids, weight, type_weight, group_position_weight, group_positions, *layout, out_dtype, deterministic
    )


def dual_codebook_embedding_reference(
    token_ids: Tensor,
    weight: Tensor,
    type_weight: Tensor | None,
    group_position_weight: Tensor | None,
    group_positions: Tensor | None,
    vocab_start_index: int,
    vocab_size: int,
    linguistic_start: int,
    semantic_start: int,
    audio_stop: int,
    scale: float,
    out_dtype: torch.dtype | None = None,
    deterministic: bool = True,
) -> Tensor:
    """The same in plain PyTorch, differentiable by autograd; arguments as the operator's schema has them."""
    sum_dtype = torch.promote_types(weight.dtype, torch.float32)
    rows = token_ids - vocab_start_index
    owned = (rows >= 0) & (rows < weight.shape[0])
    outside = (token_ids < 0) | (token_ids >= vocab_size)
    out = weight[rows.where(owned, 0)].to(sum_dtype)
    if type_weight is not None:
        out = out + type_weight[modality(token_ids, linguistic_start, semantic_start, audio_stop)].to(sum_dtype)
    if group_position_weight is not None:
        assert group_positions is not None
        outside |= (group_positions < -1) | (group_positions >= GROUP_SIZE)
        terms = group_position_weight[group_positions.clamp(0, GROUP_SIZE - 1)].to(sum_dtype)
        out = out + terms * (group_positions >= 0)[..., None]
    out = (out * scale).masked_fill(~owned[..., None], 0)
    out = out.masked_fill(outside[..., None], torch.nan)
    return out.to(out_dtype or weight.dtype).transpose(0, 1).contiguous()


def positions_in_group(token_ids: Tensor, audio_start: int, audio_stop: int) -> Tensor:
    """Place of each token within its group of five, counted from the start of the run of audio ids that it stands in.

    Args:
        token_ids: [B, S] int64, whole sequences.
        audio_start: first audio id.
        audio_stop: end of the audio ids.

    Returns:
        [B, S] int64 in 0…4, −1 for text.
    """
    is_audio = (token_ids >= audio_start) & (token_ids < audio_stop)
    if token_ids.shape[-1] == 0:
        return torch.empty_like(token_ids)
    index = torch.arange(token_ids.shape[-1], device=token_ids.device).expand_as(token_ids)
    last_text = index.masked_fill(is_audio, -1).cummax(dim=-1).values
    return ((index - last_text - 1) % GROUP_SIZE).masked_fill(~is_audio, -1)


def modality(token_ids: Tensor, linguistic_start: int, semantic_start: int, audio_stop: int) -> Tensor:
    """0 text (markers and padding too), 1 linguistic, 2 semantic; the shape of `token_ids`."""
    is_audio = (token_ids >= linguistic_start) & (token_ids < audio_stop)
    return is_audio.long() + (is_audio & (token_ids >= semantic_start)).long()


def check_ids(token_ids: Tensor, vocab_size: int, group_positions: Tensor | None = None) -> None:
    """Raises RuntimeError naming the first id outside `[0, vocab_size)` or group position outside `[-1, 5)`.

    On a GPU this waits for the device.
    """
    _check_inside(token_ids, "token id", 0, vocab_size, "the vocabulary ")
    if group_positions is not None:
        _check_inside(group_positions, "group position", -1, GROUP_SIZE)


def _check_inside(values: Tensor, name: str, start: int, stop: int, whose: str = "") -> None:
    outside = ((values < start) | (values >= stop)).nonzero()
    if outside.numel():
        batch, position = outside[0].tolist()
        raise RuntimeError(
            f"{name} {values[batch, position].item()} at batch {batch}, position {position} "
            f"is outside {whose}[{start}, {stop})"
        )


def _check_ranges(linguistic_start: int, semantic_start: int, audio_stop: int) -> None:
    if not 0 <= linguistic_start < semantic_start < audio_stop:
        raise ValueError(
            "a type or group-position table needs 0 <= linguistic_start < semantic_start < audio_stop, not "
            f"{linguistic_start}, {semantic_start}, {audio_stop}"
        )


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    token_ids, weight, _, _, group_positions, *layout, _, ctx.deterministic = inputs
    ctx.save_for_backward(token_ids, group_positions)
    ctx.layout = layout
    ctx.table = Table.of(weight)


def _backward(ctx: Any, grad_output: Tensor) -> tuple:
    token_ids, group_positions = ctx.saved_tensors
    vocab_start_index, _, linguistic_start, semantic_start, audio_stop, scale = ctx.layout
    gradient = grad_output.reshape(-1, grad_output.shape[-1])
    rows = (token_ids - vocab_start_index).t().reshape(-1)
    owned = (rows >= 0) & (rows < ctx.table.num_rows)

    def grad_of(table: Table, rows: Tensor) -> Tensor:
        return table.add_gradient(gradient, rows.where(owned, -1), scale, ctx.deterministic)

    grad_weight = grad_type = grad_group_position = None
    if ctx.needs_input_grad[1]:
        grad_weight = grad_of(ctx.table, rows)
    if ctx.needs_input_grad[2]:
        kinds = modality(token_ids, linguistic_start, semantic_start, audio_stop)
        grad_type = grad_of(Table(len(MODALITY_NAMES), ctx.table.dtype, None), kinds.t().reshape(-1))
    if ctx.needs_input_grad[3]:
        grad_group_position = grad_of(Table(GROUP_SIZE, ctx.table.dtype, None), group_positions.t().reshape(-1))
    return None, grad_weight, grad_type, grad_group_position, *(None,) * 9


def _fake(
    token_ids: Tensor,
    weight: Tensor,
    type_weight: Tensor | None,
    group_position_weight: Tensor | None,
    group_positions: Tensor | None,
    vocab_start_index: int,
    vocab_size: int,
    linguistic_start: int,
    semantic_start: int,
    audio_stop: int,
    scale: float,
    out_dtype: torch.dtype | None = None,
    deterministic: bool = True,
) -> Tensor:
    batch, length = token_ids.shape
    return weight.new_empty(length, batch, weight.shape[1], dtype=out_dtype or weight.dtype)


torch.library.register_fake(_NAME, _fake)
torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context)
if not library.built_with_cuda():
    torch.library.register_kernel(_NAME, "cuda", dual_codebook_embedding_reference)
