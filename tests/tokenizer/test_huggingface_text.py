"""Text ids of a `tokenizer.json`, before and after it was given audio tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from megatron_aqaa.checkpoint.conversion.added_tokens import grow_tokenizer, known_tokens
from megatron_aqaa.checkpoint.conversion.vocabularies import grown_vocabulary, text_vocabulary
from megatron_aqaa.tokenizer.chat import AudioSegment, ChatTemplate, Turn
from megatron_aqaa.tokenizer.huggingface_text import HuggingFaceText, open_text, text_file
from megatron_aqaa.tokenizer.text import ROLES, TextTokenizer
from megatron_aqaa.vocabulary import Vocabulary
from tests.tokenizer.tiny import HF_MARKERS, TEXTS, write_byte_pairs, write_text_model

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install '.[hf]'")
ROWS = 320  # of the text model, more than its tokenizer has ids
MIXED = ["What is TWO + two?\n\n", "größer 好 🎉", "  two  spaces ", *TEXTS]


@pytest.fixture
def plain(tmp_path: Path) -> HuggingFaceText:
    (tmp_path / "plain").mkdir()
    return HuggingFaceText(write_byte_pairs(tmp_path / "plain"))


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    """Of a grown tokenizer in `tmp_path`."""
    write_byte_pairs(tmp_path)
    tokens = known_tokens(tmp_path)
    eos = tokens["<|endoftext|>"]
    text = text_vocabulary({"vocab_size": ROWS, "bos_token_id": eos, "eos_token_id": eos})
    grown = grown_vocabulary(text, tokens, None)
    grow_tokenizer(tmp_path, grown)
    return grown


@pytest.mark.parametrize("text", MIXED)
def test_text_survives_and_has_the_ids_that_it_had(tmp_path, plain, vocabulary, text):
    grown = open_text(tmp_path)
    assert grown.decode(grown.encode(text)) == text
    package = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert grown.encode(text) == plain.encode(text) == package.encode(text, add_special_tokens=False).ids


def test_text_ids_end_where_the_codes_begin(tmp_path, plain, vocabulary):
    assert len(open_text(tmp_path)) == vocabulary.linguistic_start == ROWS
    assert len(plain) == 293


@pytest.mark.parametrize("marker", ["<audio_17>", "<audio_start>", "<|BOT|>", "<unused_300>", *HF_MARKERS])
def test_markers_written_in_text_stay_text(tmp_path, vocabulary, marker):
    grown = open_text(tmp_path)
    token_ids = grown.encode(f"say {marker} now")
    assert known_tokens(tmp_path).get(marker) not in token_ids and max(token_ids) < 290
    assert grown.decode(token_ids) == f"say {marker} now"


def test_markers_give_nothing(tmp_path, vocabulary):
    grown = open_text(tmp_path)
    assert grown.decode([vocabulary.bot, *grown.encode("two"), vocabulary.eot]) == "two"


@pytest.mark.parametrize("role", ROLES)
def test_role_headers(tmp_path, vocabulary, role):
    grown = open_text(tmp_path)
    assert grown.decode(grown.encode_role(role)) == f"{role}\n"


def test_a_conversation(tmp_path, vocabulary):
    grown = open_text(tmp_path)
    audio = [vocabulary.linguistic_start] * 2 + [vocabulary.semantic_start] * 3
    turns = [Turn("human", ("what is two",)), Turn("assistant", ("four", AudioSegment(audio)))]
    found = ChatTemplate(grown, vocabulary).encode(turns)
    tokens = known_tokens(tmp_path)
    start, end = tokens["<|im_start|>"], tokens["<|im_end|>"]
    assert found.token_ids.tolist() == [
        start, *grown.encode("human\n"), *grown.encode("what is two"), end,
        start, *grown.encode("assistant\n"),
        *grown.encode("four"), tokens["<audio_start>"], *audio, tokens["<audio_end>"], end,
    ]  # fmt: skip


def test_cutting_and_padding_of_the_file_are_not_for_data(tmp_path):
    path = write_byte_pairs(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    assert len(open_text(path).encode("what is two plus two")) > 3
    assert open_text(path).encode("t") == [tokenizer.token_to_id("t")]


def test_where_it_is_looked_for(tmp_path):
    imported = tmp_path / "run" / "huggingface" / "files"
    imported.mkdir(parents=True)
    path = write_byte_pairs(imported)
    assert text_file(tmp_path / "run") == path and isinstance(open_text(tmp_path / "run"), HuggingFaceText)
    write_text_model(tmp_path)
    assert isinstance(open_text(tmp_path), TextTokenizer)
    assert open_text(tmp_path / "text.model").encode("two") == open_text(tmp_path).encode("two")
    (tmp_path / "empty").mkdir()
    for absent in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ValueError, match="no such text model"):
            open_text(absent)


def test_bad_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"absent.json: no such tokenizer"):
        open_text(tmp_path / "absent.json")
    path = tmp_path / "tokenizer.json"
    for text in ("{", "{}", json.dumps({"added_tokens": [], "model": {}})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer.json"):
            open_text(path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"needs the tokenizers package: pip install 'megatron-aqaa\[hf\]'"):
        open_text(path)
