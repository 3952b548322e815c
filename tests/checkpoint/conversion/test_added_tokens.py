"""Audio tokens in real tokenizers: the text `<audio_17>` is one id, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece

from megatron_aqaa.checkpoint.conversion.added_tokens import grow_tokenizer, known_tokens, new_tokens
from megatron_aqaa.checkpoint.conversion.vocabularies import grown_vocabulary, text_vocabulary
from megatron_aqaa.tokenizer.text import TextConfig, train_text_model
from megatron_aqaa.vocabulary import Vocabulary

TEXT = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen jugs", "how vexingly quick zebras"]


def write_json_tokenizer(folder: Path, chat: bool) -> None:
    """As the `tokenizers` package writes it; six words."""
    words = ["<unk>", "one", "two", "three", "four", "five"]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    markers = ["<|im_start|>", "<|im_end|>"] if chat else []
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 6 + i, "content": marker, **special} for i, marker in enumerate(markers)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


@pytest.mark.parametrize("chat", [False, True])
def test_a_tokenizers_file(tmp_path, chat):
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers, which comes with transformers")
    write_json_tokenizer(tmp_path, chat)
    text = text_vocabulary({"vocab_size": 10, "bos_token_id": 0, "eos_token_id": 0})
    vocabulary = grown_vocabulary(text, known_tokens(tmp_path), None)
    assert grow_tokenizer(tmp_path, vocabulary) == ["tokenizer.json", "tokenizer_config.json"]
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == vocabulary.size
    assert tokenizer.encode("one <audio_17> two<audio_5119>").ids == [1, 27, 2, 5129]
    assert tokenizer.decode([27, 5129], skip_special_tokens=False).split() == ["<audio_17>", "<audio_5119>"]
    assert tokenizer.token_to_id("<audio_start>") == vocabulary.audio_start == 5130
    ends = ("<|im_start|>", "<|im_end|>") if chat else ("<|BOT|>", "<|EOT|>")
    assert tuple(map(tokenizer.token_to_id, ends)) == (vocabulary.bot, vocabulary.eot)


def test_json_entries_number_on_without_a_gap(tmp_path):
    """The `tokenizers` package gives added tokens the next free id, whatever the file says."""
    write_json_tokenizer(tmp_path, chat=True)
    text = text_vocabulary({"vocab_size": 12, "bos_token_id": 0, "eos_token_id": 0})
    vocabulary = grown_vocabulary(text, known_tokens(tmp_path), None)
    grow_tokenizer(tmp_path, vocabulary)
    added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    assert [token["id"] for token in added] == list(range(6, vocabulary.size))
    by_id = {token["id"]: token["content"] for token in added}
    assert (by_id[8], by_id[11], by_id[12], by_id[29]) == ("<unused_8>", "<unused_11>", "<audio_0>", "<audio_17>")
    decoder = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert decoder["29"]["content"] == "<audio_17>" and not decoder["29"]["special"]


def test_a_sentencepiece_model(tmp_path):
    train_text_model(TEXT, tmp_path / "tokenizer.model", TextConfig(size=44))
    text = text_vocabulary({"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 3})
    vocabulary = grown_vocabulary(text, known_tokens(tmp_path), None)
    assert (vocabulary.bot, vocabulary.eot, vocabulary.size) == (4, 3, 64 + 5120 + 2)
    before = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    words = before.encode(TEXT[0])
    assert grow_tokenizer(tmp_path, vocabulary) == ["tokenizer.model"]
    after = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert after.get_piece_size() == vocabulary.size
    assert after.encode(TEXT[0]) == words
    assert 64 + 17 in after.encode("the <audio_17> dog") and after.piece_to_id("<audio_17>") == 64 + 17
    assert after.decode([64 + 17]) == "<audio_17>"
    assert after.is_unused(60) and after.is_control(vocabulary.audio_end)


def test_every_new_id_has_one_name():
    vocabulary = Vocabulary.for_text(10, bos=1, pad=0, eot=3, bot=4)
    names = [text for _, text, _ in new_tokens(vocabulary)]
    assert len(names) == len(set(names)) == vocabulary.size - 10
    assert [token_id for token_id, _, _ in new_tokens(vocabulary)] == list(range(10, vocabulary.size))


def test_transformers_reads_the_grown_files(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[hf]'")
    write_json_tokenizer(tmp_path, chat=True)
    text = text_vocabulary({"vocab_size": 12, "bos_token_id": 0, "eos_token_id": 0})
    vocabulary = grown_vocabulary(text, known_tokens(tmp_path), None)
    grow_tokenizer(tmp_path, vocabulary)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == vocabulary.size
    assert tokenizer("one <audio_17><audio_5119>", add_special_tokens=False)["input_ids"] == [1, 12 + 17, 12 + 5119]
    assert tokenizer.decode([12 + 17]) == "<audio_17>"
    tokenizer.save_pretrained(tmp_path / "again")
    assert known_tokens(tmp_path / "again")["<audio_17>"] == 12 + 17


def test_both_kinds_side_by_side_where_one_knows_more(tmp_path):
    """As where a padding token was added to Llama's: `tokenizer.json` has it, the SentencePiece model has not."""
    train_text_model(TEXT, tmp_path / "tokenizer.model", TextConfig(size=44))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    words = {pieces.id_to_piece(index): index for index in range(44)}
    padding = {"id": 44, "content": "<pad>", "special": True}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": words}, "added_tokens": [padding]})
    )
    text = text_vocabulary({"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 3})
    vocabulary = grown_vocabulary(text, known_tokens(tmp_path), None)
    assert grow_tokenizer(tmp_path, vocabulary) == ["tokenizer.json", "tokenizer.model"]
    after = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert after.piece_to_id("<pad>") == 44 and after.get_piece_size() == vocabulary.size
    assert after.piece_to_id("<audio_17>") == known_tokens(tmp_path)["<audio_17>"] == 50 + 17


def test_a_tokenizer_in_several_files(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"2": {"content": "<|im_end|>", "special": True}}})
    )
    assert known_tokens(tmp_path) == {"a": 0, "b": 1, "<|im_end|>": 2}
    vocabulary = grown_vocabulary(text_vocabulary({"vocab_size": 3}), known_tokens(tmp_path), None)
    assert vocabulary.eot == 2
    assert grow_tokenizer(tmp_path, vocabulary) == ["tokenizer_config.json"]
    assert known_tokens(tmp_path)["<audio_17>"] == 3 + 17


def test_without_a_tokenizer_nothing_is_grown(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    assert grow_tokenizer(tmp_path, Vocabulary.for_text(10)) == []
    assert (tmp_path / "tokenizer_config.json").read_text() == '{"model_max_length": 7}'


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tokenizer.json", b"{", "tokenizer.json: not JSON"),
        ("tokenizer.json", b"{}", r"tokenizer.json: not a file of the tokenizers package \(KeyError\('model'\)\)"),
        ("tokenizer.model", b"nothing of the kind", "tokenizer.model: not a SentencePiece model"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        known_tokens(tmp_path)
