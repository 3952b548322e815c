"""Id layouts of imported models."""

from __future__ import annotations

import pytest

from megatron_aqaa.checkpoint.conversion.vocabularies import grown_vocabulary, text_vocabulary


def test_ids_of_a_text_model():
    found = text_vocabulary({"vocab_size": 128256, "bos_token_id": 128000, "eos_token_id": [128001, 128008]})
    assert (found.size, found.text_size, found.bos, found.eot, found.pad) == (128256, 128256, 128000, 128001, 128001)
    assert found.linguistic_size == found.semantic_size == 0
    assert text_vocabulary({"vocab_size": 10, "bos_token_id": None, "pad_token_id": -1}).pad == 0


def test_where_ids_may_begin():
    text = text_vocabulary({"vocab_size": 200, "bos_token_id": 150, "eos_token_id": 151})
    tokens = {f"token{i}": i for i in range(160)}
    assert grown_vocabulary(text, tokens, 160).linguistic_start == 160
    assert grown_vocabulary(text, tokens, None).linguistic_start == 200
    for base in (159, 201):
        with pytest.raises(ValueError, match="behind the tokenizer's 160 ids and within the 200 rows"):
            grown_vocabulary(text, tokens, base)


def test_a_tokenizer_with_a_gap_is_refused():
    """Tokens that are added to it would not get the ids that the model has for them."""
    text = text_vocabulary({"vocab_size": 200, "bos_token_id": 150, "eos_token_id": 151})
    tokens = {f"token{i}": i for i in range(160) if i not in (7, 9)}
    with pytest.raises(ValueError, match=r"ids up to 159, but no token 7 \(2 such in all\)"):
        grown_vocabulary(text, tokens, None)
