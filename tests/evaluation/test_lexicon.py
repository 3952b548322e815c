from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_aqaa.audio.espeak import SpeechEngineError
from megatron_aqaa.evaluation.lexicon import WORD_PENALTY, Lexicon
from megatron_aqaa.tokenizer.edit_distance import edit_distance

WORDS = {"a": ["x"], "be": ["b", "i"], "sea": ["s", "i"], "bees": ["b", "i", "s"]}


def cost(words: tuple[str, ...], heard: list[str]) -> float:
    said = [phone for word in words for phone in WORDS[word]]
    return edit_distance(said, heard) + WORD_PENALTY * len(words)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from("xbis?"), min_size=1, max_size=4))
def test_no_sequence_of_words_costs_less(heard: list[str]) -> None:
    found = tuple(Lexicon(WORDS).spell(heard))
    others = (words for count in range(1, 5) for words in product(WORDS, repeat=count))
    assert cost(found, heard) == min(cost(words, heard) for words in others)


def test_what_was_said_is_spelled() -> None:
    assert Lexicon(WORDS).spell(["s", "i", "x", "b", "i"]) == ["sea", "a", "be"]
    assert Lexicon(WORDS).spell([]) == []


def test_words_without_phones_are_refused() -> None:
    with pytest.raises(ValueError, match=r"without any: \['hm'\]"):
        Lexicon({"a": ["x"], "hm": []})


def test_words_as_espeak_says_them() -> None:
    try:
        lexicon = Lexicon.spoken(["tiger", "seven"])
    except SpeechEngineError as error:
        pytest.skip(str(error))
    assert lexicon.spell(["s", "E", "v", "@", "n", "t", "aI", "g", "3"]) == ["seven", "tiger"]
