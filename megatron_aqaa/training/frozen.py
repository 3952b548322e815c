"""Parts of a language model that a run leaves as they are: the backbone, the text rows of the tables, or both.

The published stage 1 trains everything (embedding and head at five times the rate); a run on a small budget, or the
first steps after a vocabulary was grown, may train the rows of audio codes and markers alone.

*Backbone*: its parameters take no gradient, so they have neither gradient buffer nor optimizer state.

*Text rows* share a parameter with the rows that learn. Three things keep them to the last bit:

1. Their gradient is set to zero after it has been summed over micro-batches and ranks and before the optimizer sees
   it, so they count neither in the gradient norm nor in clipping. It is the one place where the sparse gradient of the
   embedding, the dense one of the head and, where these are tied, their sum are complete.
2. Adam's moments of such a row then stay zero, and so does its update.
3. Decoupled weight decay would shrink the row all the same, so the tables have none (`wd_mult: 0` of their parameter
   group). That spares the rows that learn as well, of which a budget this small asks no regularisation.

With bf16 weights the fp32 copies in the optimizer are exact and stay so. A checkpoint holds all of this in the
parameter group, whose key includes `wd_mult`; it can be resumed at another layout but not with other parts frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from megatron.core.distributed import finalize_model_grads
from torch import Tensor

from megatron_aqaa.model import AQAAModel
from megatron_aqaa.model.table_shards import table_shards
from megatron_aqaa.vocabulary import TEXT, Vocabulary

Frozen = Literal["backbone", "text_rows"]


def freeze_backbone(modules: list[AQAAModel]) -> None:
    """Take gradients only of embedding, output head and the small tables; call it before DDP makes its buffers.

    Raises:
        ValueError: a pipeline stage would have nothing to train.
    """
    stages = modules[0].config.pipeline_model_parallel_size
    if stages > 2:  # Megatron asserts that every rank has optimizer state when it saves
        raise ValueError(
            f"parallel.pipeline_model_parallel_size = {stages} with training.frozen: backbone leaves stages without "
            "anything to train: use at most 2 stages (a frozen backbone takes no gradients and no optimizer state)"
        )
    for module in modules:
        for parameter in module.parameters():
            parameter.requires_grad_(getattr(parameter, "is_embedding_or_output_parameter", False))


def finalize_without_text_rows(modules: list[AQAAModel]) -> Callable[..., None]:
    """Megatron's `finalize_model_grads`, after which the gradients of all text rows are zero.

    Args:
        modules: the models inside DDP; the parts of this process.
    """

    def finalize(*args: Any, **kwargs: Any) -> None:
        finalize_model_grads(*args, **kwargs)
        for module in modules:
            for gradient in _text_gradients(module):
                gradient.zero_()

    return finalize


def text_spans(vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """[start, stop) of the ids that text rows are frozen for: the text range without the audio markers in it."""
    markers = sorted({m for m in (vocabulary.audio_start, vocabulary.audio_end) if m < vocabulary.text_size})
    starts, stops = [0, *(marker + 1 for marker in markers)], [*markers, vocabulary.text_size]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]


def _text_gradients(module: AQAAModel) -> Iterator[Tensor]:
    """Views [n, H] of the fp32 gradients of the text rows that this rank holds."""
    for weight, first_row, _ in table_shards(module):
        for start, stop in text_spans(module.vocabulary):
            yield weight.main_grad[max(start - first_row, 0) : max(stop - first_row, 0)]  # type: ignore[attr-defined]
    if module.pre_process and module.embedding.codebook_type is not None:
        yield module.embedding.codebook_type.main_grad[TEXT]  # type: ignore[attr-defined]
