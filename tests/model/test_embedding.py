"""The embedding stack inside the model; the operator behind it has tests of its own."""

from __future__ import annotations

import pytest
import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_aqaa.model import AQAAModel, build_model, to_transformer_config
from megatron_aqaa.model.embedding import AudioEmbedding, fold_codebook_type
from megatron_aqaa.model.layer_spec import transformer_block_spec
from megatron_aqaa.model.table_shards import table_shards
from megatron_aqaa.platform import ParallelConfig
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


def test_an_id_behind_the_vocabulary_is_named_though_the_table_has_padding_for_it(one_process: None) -> None:
    layer = embedding()
    assert len(layer.word_embeddings.weight) > VOCABULARY.size
    with pytest.raises(RuntimeError, match=f"token id {VOCABULARY.size} at batch 0, position 1"):
        layer(torch.tensor([[3, VOCABULARY.size]]))


def test_the_weight_keeps_what_tying_and_learning_rates_hang_on(one_process: None) -> None:
    tied = build_model(variant(untie_embeddings_and_output_weights=False), VOCABULARY)[0]
    words = tied.embedding.word_embeddings.weight
    assert tied.shared_embedding_or_output_weight() is words
    assert words.is_embedding_or_output_parameter
    assert [shard.weight is words for shard in table_shards(tied)] == [True]
    untied = build_model(TINY, VOCABULARY)[0]
    assert [shard.weight is untied.output_layer.weight for shard in table_shards(untied)] == [False, True]


def stock_model() -> GPTModel:
    """Megatron's GPT of the same size, as it comes."""
    config, groups = to_transformer_config(TINY, ParallelConfig()), ProcessGroupCollection.use_mpu_process_groups()
    return GPTModel(
        config,
        transformer_block_spec(TINY, config, groups),
        vocab_size=128,
        max_sequence_length=TINY.max_sequence_length,
        position_embedding_type="none",
        pg_collection=groups,
    )


def test_released_weights_load_and_give_unchanged_logits(one_process: None) -> None:
    model, stock = build_model(TINY, VOCABULARY)[0], stock_model()
    assert model.state_dict().keys() == stock.state_dict().keys()
    assert model.sharded_state_dict().keys() == stock.sharded_state_dict().keys()
    stock.load_state_dict(model.state_dict())
    expected = stock(TOKEN_IDS, None, None)[..., : VOCABULARY.size]
    torch.testing.assert_close(model(TOKEN_IDS), expected, rtol=0, atol=0)


def exported(model: AQAAModel) -> AQAAModel:
    """A model without small tables that holds the exported rows, and the head's rows as they are."""
    plain = build_model(variant(params_dtype=model_dtype(model)), VOCABULARY)[0]
    weights = {name: value for name, value in model.state_dict().items() if "codebook_type" not in name}
    weights["embedding.word_embeddings.weight"] = model.embedding.exported_weight()
    weights["output_layer.weight"] = table_shards(model)[-1].weight.detach()
    plain.load_state_dict(weights)
    return plain


def model_dtype(model: AQAAModel) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[model.config.params_dtype]


@pytest.mark.parametrize("untied", [True, False], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_exported_rows_give_the_logits_of_rows_and_type_table(one_process: None, dtype: str, untied: bool) -> None:
    changes = {"codebook_type_embedding": True, "untie_embeddings_and_output_weights": untied}
    model = build_model(variant(params_dtype=dtype, **changes), VOCABULARY)[0]
    torch.nn.init.normal_(model.embedding.codebook_type)
    plain = exported(model)
    torch.testing.assert_close(plain(TOKEN_IDS), model(TOKEN_IDS), rtol=0, atol=0)
    rows, before = plain.embedding.word_embeddings.weight, model.embedding.word_embeddings.weight
    assert not torch.equal(rows[: VOCABULARY.size], before[: VOCABULARY.size])
    assert torch.equal(rows[VOCABULARY.size :], before[VOCABULARY.size :])


def test_folding_knows_which_rows_it_is_given() -> None:
    rows, kinds = torch.randn(128, 8), torch.randn(3, 8)
    whole = fold_codebook_type(rows, kinds, VOCABULARY)
    halves = [fold_codebook_type(rows[start : start + 64], kinds, VOCABULARY, start) for start in (0, 64)]
    assert torch.equal(torch.cat(halves), whole)
    torch.testing.assert_close(whole[[5, 60, 107, 109]] - rows[[5, 60, 107, 109]], kinds[[0, 1, 2, 0]])


def test_without_small_tables_the_rows_are_exported_as_they_are(one_process: None) -> None:
    layer = embedding()
    assert torch.equal(layer.exported_weight(), layer.word_embeddings.weight)


def test_places_cannot_be_exported(one_process: None) -> None:
    with pytest.raises(ValueError, match="stands at several places.*group_position_embedding: false"):
        embedding(group_position_embedding=True).exported_weight()
