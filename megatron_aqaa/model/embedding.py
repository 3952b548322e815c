"""Embedding of the merged vocabulary, with optional vectors for the codebook and the place within a group."""

from __future__ import annotations

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn import Parameter

from megatron_aqaa.model.config import ModelConfig
from megatron_aqaa.ops import dual_codebook_embedding
from megatron_aqaa.vocabulary import GROUP_SIZE, MODALITY_NAMES, Vocabulary


class AudioEmbedding(MegatronModule):
    """One vocabulary-parallel table for text and both codebooks; two small tables can be added to it.

    All terms of a token come from the rank that owns its row, so one reduction (one reduce-scatter under sequence
    parallelism) brings them together.

    Args:
        stock: Megatron's embedding. Its `word_embeddings` module is kept: tying and checkpoint keys depend on it.
        model: model configuration.
        vocabulary: id ranges of the codebooks.
    """

    def __init__(self, stock: LanguageModelEmbedding, model: ModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config=stock.config)
        self.vocabulary = vocabulary
        self.word_embeddings = stock.word_embeddings
        self.tp_group = stock.tp_group
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
            vocab_size=words.num_embeddings,
            type_weight=self._shared(self.codebook_type),
            group_position_weight=self._shared(self.group_position),
            group_positions=position_ids,
            linguistic_start=v.linguistic_start,
            semantic_start=v.semantic_start,
            audio_stop=v.audio_stop,
        )
        if self.config.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(partial_sum, group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(partial_sum, group=self.tp_group)

    def _shared(self, table: Parameter | None) -> Tensor | None:
        """A table whose gradient is summed over the ranks: each rank's covers only the tokens that it owns."""
        return None if table is None else copy_to_tensor_model_parallel_region(table, group=self.tp_group)
