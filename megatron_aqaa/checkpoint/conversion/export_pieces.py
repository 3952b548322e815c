"""What the tensors of an exported model are made of: parts of Megatron's, codebook vectors folded in."""

from __future__ import annotations

import dataclasses

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.conversion.model_directory import MegatronModel
from megatron_aqaa.checkpoint.conversion.pieces import Piece, Pieces
from megatron_aqaa.checkpoint.mapping import (
    CODEBOOK_TYPE,
    EMBEDDING,
    GROUP_POSITION,
    HF_HEAD,
    Shape,
    huggingface_shapes,
    links,
)
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles
from megatron_aqaa.model.config import ModelConfig


def exported_model(found: MegatronModel) -> ModelConfig:
    """With codebook vectors folded into the embedding, a tied head becomes one of its own: they are for input only."""
    if GROUP_POSITION in found.small_tables:
        raise ValueError(
            "model.group_position_embedding cannot be exported: it adds a vector by the place of a token, while an "
            "exported row belongs to the token alone. Train with model.group_position_embedding: false for a model "
            "that is to be served elsewhere"
        )
    folded = CODEBOOK_TYPE in found.small_tables
    untied = found.model.untie_embeddings_and_output_weights or folded
    return dataclasses.replace(found.model, untie_embeddings_and_output_weights=untied, codebook_type_embedding=False)


def exported_pieces(found: MegatronModel, with_tied_head: bool = False) -> dict[str, tuple[Shape, Pieces]]:
    """Hugging Face tensor → its shape, and what it is made of.

    Args:
        found: the checkpoint.
        with_tied_head: also the embedding a second time, as head.
    """
    model = exported_model(found)
    shapes, pieces = huggingface_shapes(model, found.vocabulary.size), _pieces(found, model)
    if with_tied_head:
        shapes[HF_HEAD] = (found.vocabulary.size, model.hidden_size)
    return {name: (shape, pieces[name]) for name, shape in shapes.items()}


def _pieces(found: MegatronModel, model: ModelConfig) -> dict[str, Pieces]:
    tensors, pieces = found.stored.tensors, dict[str, list[Piece]]()
    for link in links(model, found.vocabulary.size):
        tied = link.name == HF_HEAD and not found.model.untie_embeddings_and_output_weights
        source = tensors[EMBEDDING if tied else link.megatron]
        pieces.setdefault(link.name, []).append(Piece(link.box, source, link.megatron_box))
    if CODEBOOK_TYPE in found.small_tables:
        pieces["model.embed_tokens.weight"] = _folded(found)
    return {name: Pieces(parts) for name, parts in pieces.items()}


def _folded(found: MegatronModel) -> list[Piece]:
    """Embedding with the vector of each row's codebook added, rounded once (`model.embedding.fold_codebook_type`)."""
    v, table, vectors = found.vocabulary, found.stored.tensors[EMBEDDING], found.small_tables[CODEBOOK_TYPE]
    text, linguistic, semantic = MappedFiles().read(vectors, Box.whole(vectors.shape)).clone()
    ranges = (
        (0, v.linguistic_start, text),
        (v.linguistic_start, v.semantic_start, linguistic),
        (v.semantic_start, v.audio_stop, semantic),
        (v.audio_stop, v.size, text),
    )
    boxes = [(Box((start, 0), (stop - start, table.shape[1])), added) for start, stop, added in ranges if stop > start]
    return [Piece(box, table, box, added) for box, added in boxes]
