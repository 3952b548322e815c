"""Embedding of the merged vocabulary, with optional vectors for the codebook and the place within a group."""

from __future__ import annotations

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor
from torch.nn import Parameter

from megatron_aqaa.model.config import ModelConfig
from megatron_aqaa.ops import dual_codebook_embedding
from megatron_aqaa.vocabulary import GROUP_SIZE, MODALITY_NAMES, Vocabulary


class AudioEmbedding(LanguageModelEmbedding):
    """Megatron's embedding on our operator: one vocabulary-parallel table for text and both codebooks.

    Two small tables can be added to it.
    All terms of a token come from the rank that owns its row, so one reduction (one reduce-scatter under sequence
    parallelism) brings them together.

    Args:
        stock: the embedding that `GPTModel` has built, which this one takes over with its table. Built anew, the table
            would exist twice while a model is made, and tying and checkpoint keys depend on `word_embeddings`.
        model: model configuration.
        vocabulary: id ranges of the codebooks.
    """

    def __init__(self, stock: LanguageModelEmbedding, model: ModelConfig, vocabulary: Vocabulary) -> None:
        torch.nn.Module.__init__(self)
        self.__dict__.update(stock.__dict__)
        self.vocabulary = vocabulary
        self.deterministic = model.deterministic_embedding_gradient
        self.codebook_type = self._table(len(MODALITY_NAMES)) if model.codebook_type_embedding else None
        self.group_position = self._table(GROUP_SIZE) if model.group_position_embedding else None

    def _table(self, rows: int) -> Parameter:
        """[rows, H], the same on every tensor-parallel rank."""
        weight = self.word_embeddings.weight
        table = Parameter(torch.empty(rows, weight.shape[1], dtype=weight.dtype, device=weight.device))
        self.config.embedding_init_method(table)
        table.is_embedding_or_output_parameter = True  # type: ignore[attr-defined]
        return table

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Token ids [B, S] to [S, B, H], or this rank's [S/tp, B, H] under sequence parallelism."""
        words, v = self.word_embeddings, self.vocabulary
        partial_sum = dual_codebook_embedding(
            input_ids,
            words.weight,
            words.vocab_start_index,
            vocab_size=v.size,
            type_weight=self._shared(self.codebook_type),
            group_position_weight=self._shared(self.group_position),
            group_positions=position_ids,
            linguistic_start=v.linguistic_start,
            semantic_start=v.semantic_start,
            audio_stop=v.audio_stop,
            deterministic=self.deterministic,
        )
        if self.config.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(partial_sum, group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(partial_sum, group=self.tp_group)

    @torch.no_grad()
    def exported_weight(self) -> Tensor:
        """[rows, H]: this rank's rows as a format without the small tables has them, see `fold_codebook_type`.

        With a tied head the exported model needs a head of its own: the head goes on with `word_embeddings.weight`
        as it is, since the codebook vectors belong to the input alone.

        Raises:
            ValueError: there is a group-position table, which no set of rows can express.
        """
        if self.group_position is not None:
            raise ValueError(
                "model.group_position_embedding cannot be exported: it adds a vector by the place of a token, and the "
                "same token stands at several places, while an exported row belongs to the token alone. Train with "
                "model.group_position_embedding: false for a model that is to be served elsewhere"
            )
        words = self.word_embeddings
        if self.codebook_type is None:
            return words.weight.detach().clone()
        return fold_codebook_type(words.weight, self.codebook_type, self.vocabulary, words.vocab_start_index)

    def _shared(self, table: Parameter | None) -> Tensor | None:
        """A table whose gradient is summed over the ranks: each rank's covers only the tokens that it owns."""
        return None if table is None else copy_to_tensor_model_parallel_region(table, group=self.tp_group)


def fold_codebook_type(rows: Tensor, codebook_type: Tensor, vocabulary: Vocabulary, first_row: int = 0) -> Tensor:
    """Rows of a table that alone embeds as `rows` and the table of codebook vectors do together.

    The sum is taken in fp32 (fp64 for fp64) and rounded once to the dtype of `rows`, as the operator does it: the
    folded table embeds bit for bit as the two tables, in bf16 too.

    Args:
        rows: [rows, H], tensor-parallel slice or whole table.
        codebook_type: [3, H] for text, linguistic, semantic.
        vocabulary: id layout.
        first_row: token id of `rows[0]`.

    Returns:
        [rows, H]; padded rows are as before.
    """
    token_ids = torch.arange(first_row, first_row + len(rows), device=rows.device)
    wide = torch.promote_types(rows.dtype, torch.float32)
    folded = rows.to(wide) + codebook_type.to(wide)[vocabulary.modality(token_ids)]
    return torch.where((token_ids < vocabulary.size)[:, None], folded.to(rows.dtype), rows)
