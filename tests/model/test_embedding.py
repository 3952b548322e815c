"""The embedding stack inside the model; the operator behind it has tests of its own."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa.model import build_model
from megatron_aqaa.model.embedding import AudioEmbedding
from tests.model.sizes import TINY, VOCABULARY, variant

# one token of each kind: text, linguistic, linguistic, semantic, semantic, semantic, marker
TOKEN_IDS = torch.tensor([[5, 60, 75, 76, 107, 80, 109]])
KINDS = [0, 1, 1, 2, 2, 2, 0]
PLACES = [None, 0, 1, 2, 3, 4, None]


def embedding(**changes: bool) -> AudioEmbedding:
    return build_model(variant(**changes), VOCABULARY)[0].embedding


def test_alone_it_is_a_table(one_process: None) -> None:
    layer = embedding()
    expected = layer.word_embeddings.weight[TOKEN_IDS].transpose(0, 1)
    torch.testing.assert_close(layer(TOKEN_IDS), expected)
    assert [name for name, _ in layer.named_parameters()] == ["word_embeddings.weight"]


def test_kind_and_place_are_added(one_process: None) -> None:
    layer = embedding(codebook_type_embedding=True, group_position_embedding=True)
    words, kinds, places = layer.word_embeddings.weight, layer.codebook_type, layer.group_position
    assert kinds is not None
    assert places is not None
    expected = [
        words[token_id] + kinds[kind] + (0 if place is None else places[place])
        for token_id, kind, place in zip(TOKEN_IDS[0], KINDS, PLACES, strict=True)
    ]
    out = layer(TOKEN_IDS)
    torch.testing.assert_close(out, torch.stack(expected)[:, None])
    out.sum().backward()
    assert kinds.grad[:, 0].tolist() == [2, 2, 3]
    assert places.grad[:, 0].tolist() == [1] * 5


def test_places_can_be_given_where_tokens_are_not_whole_sequences(one_process: None) -> None:
    layer = embedding(group_position_embedding=True)
    whole = layer(TOKEN_IDS)
    torch.testing.assert_close(layer(TOKEN_IDS[:, 3:], torch.tensor([[2, 3, 4, -1]])), whole[3:])


def test_an_id_outside_the_tables_is_named(one_process: None) -> None:
    with pytest.raises(RuntimeError, match="token id 128 at batch 0, position 1"):
        embedding()(torch.tensor([[3, 128]]))


def test_the_weight_keeps_what_tying_and_learning_rates_hang_on(one_process: None) -> None:
    tied = build_model(variant(untie_embeddings_and_output_weights=False), VOCABULARY)[0]
    assert tied.shared_embedding_or_output_weight() is tied.embedding.word_embeddings.weight
    assert tied.embedding.word_embeddings.weight.is_embedding_or_output_parameter
    assert tied.output_head() is None
    assert build_model(TINY, VOCABULARY)[0].output_head() is not None
