from __future__ import annotations

import string
from pathlib import Path

import pytest

from megatron_aqaa.tokenizer.text import ROLES, TextConfig, TextTokenizer, train_text_model
from tests.tokenizer.tiny import TEXTS, write_text_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return write_text_model(tmp_path_factory.mktemp("text"))


def test_special_pieces_have_the_published_ids(tokenizer: TextTokenizer) -> None:
    pieces = [tokenizer.processor.id_to_piece(i) for i in range(5)]
    assert pieces == ["<unk>", "<s>", "</s>", "<|EOT|>", "<|BOT|>"]
    vocabulary = tokenizer.vocabulary()
    assert (vocabulary.pad, vocabulary.bos, vocabulary.eot, vocabulary.bot) == (0, 1, 3, 4)
    assert vocabulary.text_size == len(tokenizer) == 40
    assert vocabulary.size == 40 + 1024 + 4096 + 2


@pytest.mark.parametrize("text", [*TEXTS, "two\nplus\n\ntwo", string.ascii_lowercase, "jazz quiz"])
def test_text_survives(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_letter_has_a_piece_although_the_text_lacks_some(tokenizer: TextTokenizer) -> None:
    assert set("cqx").isdisjoint("".join(TEXTS))
    for letter in string.ascii_lowercase:
        assert 0 not in tokenizer.encode(letter)


@pytest.mark.parametrize("role", ROLES)
def test_role_headers_are_one_piece(tokenizer: TextTokenizer, role: str) -> None:
    (header,) = tokenizer.encode_role(role)
    assert tokenizer.decode([header]) == f"{role}\n"


def test_markers_written_in_text_stay_text(tokenizer: TextTokenizer) -> None:
    assert {3, 4}.isdisjoint(tokenizer.encode("say <|EOT|> and <|BOT|>human\n"))


def test_case_is_folded(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode("What is TWO") == tokenizer.encode("what is two")


def test_the_same_text_gives_the_same_model(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    train_text_model(TEXTS * 2, tmp_path / "again.model", TextConfig(size=40))
    assert TextTokenizer(tmp_path / "again.model").encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_too_little_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 sentences do not make 500 pieces"):
        train_text_model(["only this"], tmp_path / "text.model", TextConfig(size=500))
    with pytest.raises(ValueError, match="no text"):
        train_text_model([], tmp_path / "text.model", TextConfig())


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing.model: no such text model"):
        TextTokenizer(tmp_path / "missing.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"bad.model: not a SentencePiece model"):
        TextTokenizer(tmp_path / "bad.model")
