"""The language model of text and audio tokens, on Megatron's GPT."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.inference.contexts import BaseInferenceContext
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from torch import Tensor

from megatron_aqaa.model.config import ModelConfig, to_transformer_config
from megatron_aqaa.model.embedding import AudioEmbedding
from megatron_aqaa.model.forward_hooks import wait_for_weights
from megatron_aqaa.model.layer_spec import transformer_block_spec
from megatron_aqaa.ops import linear_vocab_parallel_logps
from megatron_aqaa.platform import ParallelConfig, device
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY_MULTIPLE = 128
"""Rows of the tables are rounded up to this, whatever the layout, so that checkpoints have one shape."""

ONE_PROCESS = ParallelConfig()


class AQAAModel(GPTModel):
    """GPT over the merged vocabulary: audio embedding in front, loss on chosen positions behind.

    Args:
        model: size and kind.
        vocabulary: id layout; its `size` rows enter the softmax, padded ones never do.
        parallel: the layout that `platform.initialize` was given.
        pre_process: this stage holds the embedding.
        post_process: this stage holds the output head.
        vp_stage: index among this process's virtual pipeline stages.
    """

    embedding: AudioEmbedding

    def __init__(
        self,
        model: ModelConfig,
        vocabulary: Vocabulary,
        parallel: ParallelConfig = ONE_PROCESS,
        *,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
    ) -> None:
        config = to_transformer_config(model, parallel)
        groups = ProcessGroupCollection.use_mpu_process_groups()
        super().__init__(
            config,
            transformer_block_spec(model, config, groups, vp_stage),
            vocab_size=vocabulary.padded_size(VOCABULARY_MULTIPLE),
            max_sequence_length=model.max_sequence_length,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=not model.untie_embeddings_and_output_weights,
            position_embedding_type="rope" if model.position_embedding == "rope" else "none",
            rotary_base=model.rotary_base,
            rope_scaling=model.rotary_scaling_factor != 1.0,
            rope_scaling_factor=model.rotary_scaling_factor,
            pg_collection=groups,
            vp_stage=vp_stage,
        )
        self.vocabulary = vocabulary
        self.recompute_logits = model.recompute_logits
        if pre_process:
            self.embedding = AudioEmbedding(self.embedding, model, vocabulary)
        if post_process:
            # `_whole_sequence` gathers, so the head sees plain tensor parallelism and reduces its own input gradient.
            self.output_layer.sequence_parallel = False
            self.output_layer.allreduce_dgrad = parallel.tensor_model_parallel_size > 1

    def forward(
        self,
        token_ids: Tensor,
        document_ids: Tensor | None = None,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        inference_context: BaseInferenceContext | None = None,
        group_positions: Tensor | None = None,
    ) -> Tensor:
        """Losses, logits, or hidden states for the next pipeline stage.

        Args:
            token_ids: [B, S]; under context parallelism this rank's zig-zag part, as are labels and loss_mask.
            document_ids: [B, Sk] of the whole sequence (with a KV cache: of all positions so far); None: one
                document per row.
            labels: [B, S] next tokens; read only where loss_mask is not zero.
            loss_mask: [B, S]; positions with zero skip the output head and get loss 0. None: all count.
            inference_context: Megatron's KV cache; the model must be in eval mode and its sequence not split.
            group_positions: [B, S] for `group_position_embedding` where `token_ids` are not whole sequences.

        Returns:
            With labels: losses [B, S], unweighted, fp32. Without: logits [B, S, vocabulary.size] of all ranks' rows;
            with `inference_context`, of the last position alone, [B, 1, vocabulary.size].
        """
        if self.pre_process:
            wait_for_weights(self.embedding.word_embeddings)
        return super().forward(
            input_ids=token_ids,
            position_ids=group_positions,
            attention_mask=document_ids,
            labels=labels,
            loss_mask=loss_mask,
            inference_context=inference_context,
        )

    def _postprocess(
        self,
        hidden_states: Tensor,
        *,
        labels: Tensor | None,
        loss_mask: Tensor | None,
        inference_context: BaseInferenceContext | None,
        **_: Any,
    ) -> Tensor:
        """What the last stage makes of hidden states [S, B, H]; other stages pass them on."""
        if not self.post_process:
            return hidden_states
        hidden_states = self._whole_sequence(hidden_states)
        if labels is not None:
            return self._losses(hidden_states, labels, loss_mask)
        if inference_context is not None:
            hidden_states = hidden_states[-1:]
        logits = gather_from_tensor_model_parallel_region(self._head(hidden_states), group=self.pg_collection.tp)
        return logits[..., : self.vocabulary.size].transpose(0, 1)

    def _whole_sequence(self, hidden_states: Tensor) -> Tensor:
        if not self.config.sequence_parallel:
            return hidden_states
        return gather_from_sequence_parallel_region(
            hidden_states, tensor_parallel_output_grad=False, group=self.pg_collection.tp
        )

    def _losses(self, hidden_states: Tensor, labels: Tensor, loss_mask: Tensor | None) -> Tensor:
        """[B, S], without calling the head.

        The head is a third of the miniature: only positions that carry loss go through it. Every tensor-parallel rank
        has the same loss_mask, so all choose the same positions.
        """
        flat_labels = labels.transpose(0, 1).reshape(-1)
        flat_hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        mask = torch.ones_like(flat_labels) if loss_mask is None else loss_mask.transpose(0, 1).reshape(-1)
        wait_for_weights(self.output_layer)
        losses = -linear_vocab_parallel_logps(
            flat_hidden,
            self._head_weight(),
            flat_labels,
            vocab_size=self.vocabulary.size,
            group=self.pg_collection.tp,
            loss_mask=mask,
            recompute=self.recompute_logits,
        )
        return losses.view(labels.shape[1], labels.shape[0]).transpose(0, 1)

    def _head(self, hidden_states: Tensor) -> Tensor:
        return self.output_layer(hidden_states, weight=self._head_weight(), runtime_gather_output=False)[0]

    def _head_weight(self) -> Tensor:
        tied = self.share_embeddings_and_output_weights
        return self.shared_embedding_or_output_weight() if tied else self.output_layer.weight


def build_model(model: ModelConfig, vocabulary: Vocabulary, parallel: ParallelConfig = ONE_PROCESS) -> list[AQAAModel]:
    """The parts of the model that this process holds: one per virtual pipeline stage, on its device."""
    stages = parallel.virtual_pipeline_model_parallel_size or 1
    rank = parallel_state.get_pipeline_model_parallel_rank()
    size = parallel_state.get_pipeline_model_parallel_world_size()
    return [
        AQAAModel(
            model,
            vocabulary,
            parallel,
            pre_process=rank == 0 and stage == 0,
            post_process=rank == size - 1 and stage == stages - 1,
            vp_stage=stage if stages > 1 else None,
        ).to(device())
        for stage in range(stages)
    ]
