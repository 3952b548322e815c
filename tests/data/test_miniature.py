from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from megatron_aqaa.data.miniature import (
    ANSWERS,
    FAMILIES,
    QUESTIONS,
    STYLE_COMMANDS,
    STYLES,
    Question,
    draw_question,
    spoken_form,
)


def test_size_of_the_domain() -> None:
    assert len(FAMILIES) >= 8
    assert len(set(QUESTIONS)) == len(QUESTIONS) >= 110
    assert 75 <= len(ANSWERS) <= 90
    assert all(len(set(family.wordings)) == 5 for family in FAMILIES)
    assert STYLES == ("neutral", "slow", "quick", "high", "low")


def test_no_question_has_two_answers() -> None:
    answers: dict[str, str] = {}
    for question in QUESTIONS:
        for wording in range(5):
            text = question.text(wording)
            assert answers.setdefault(text, question.answer) == question.answer, text
    assert len(answers) == 5 * len(QUESTIONS)


def test_texts_are_plain_words() -> None:
    texts = {question.text(wording, style) for question in QUESTIONS for wording in range(5) for style in STYLES}
    for text in texts | set(ANSWERS):
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz "), text
        assert text == " ".join(text.split()), text


def find(family: str, *item: str) -> Question:
    return next(q for q in QUESTIONS if q.family.name == family and q.item[: len(item)] == item)


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        (find("sum", "two", "three"), "what is two plus three", "you get five"),
        (find("sum", "six", "six"), "what is six plus six", "you get twelve"),
        (find("opposite", "hot"), "what is the opposite of hot", "the opposite is cold"),
        (find("color", "grass"), "what color is the grass", "it is green"),
        (find("next_day", "sunday"), "what day is after sunday", "it is monday"),
        (find("previous_day", "monday"), "what day is before monday", "it is sunday"),
        (find("animal", "cat"), "what does the cat say", "it says meow"),
        (find("capital", "france"), "what is the capital of france", "it is paris"),
        (find("spelling", "fish"), "how do you spell fish", "f i s h"),
        (find("list", "medals"), "what are the medals", "they are gold silver and bronze"),
    ],
)
def test_one_question_of_every_family(question: Question, text: str, answer: str) -> None:
    assert question.text(0) == text
    assert question.answer == answer


def test_style_commands_come_last_or_first() -> None:
    question = find("capital", "france")
    assert question.text(1, "slow") == "capital of france say it slowly"
    assert question.text(1, "high", style_first=True) == "say it in a high voice capital of france"
    assert question.text(1, "neutral", style_first=True) == "capital of france"


def wording_of(asked) -> int:
    texts = {
        asked.question.text(wording, asked.style, first): wording for wording in range(5) for first in (False, True)
    }
    return texts[asked.text]


def test_training_draws_everything_but_the_held_out_wordings() -> None:
    random = Random(0)
    drawn = [draw_question(random) for _ in range(8000)]
    assert {asked.question for asked in drawn} == set(QUESTIONS)
    assert {(asked.question.family.name, wording_of(asked)) for asked in drawn} == {
        (family.name, wording) for family in FAMILIES for wording in range(4)
    }
    share = {style: count / len(drawn) for style, count in Counter(asked.style for asked in drawn).items()}
    assert share == pytest.approx(
        {"neutral": 0.5, "slow": 0.125, "quick": 0.125, "high": 0.125, "low": 0.125}, abs=0.02
    )


def test_held_out_wordings_only_on_request() -> None:
    random = Random(0)
    assert {wording_of(draw_question(random, held_out_wording=True)) for _ in range(500)} == {4}


def test_some_answers_are_longer_than_a_chunk_of_text() -> None:
    """More than ten pieces of any tokenizer that splits rare words make the 10:15 interleave do its work."""
    assert sum(len(answer) > 28 for answer in ANSWERS) >= 4


def test_spelled_letters_get_their_names() -> None:
    assert spoken_form("a p p l e") == "eigh p p l e"
    assert spoken_form("s n a k e") == "s n eigh k e"
    assert spoken_form(f"capital of france say it {STYLE_COMMANDS['high']}").endswith("in a high voice")
