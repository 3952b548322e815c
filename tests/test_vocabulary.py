"""Id layout and the group grammar."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_aqaa.vocabulary import AnswerFormat, GroupGrammar, Vocabulary

SMALL = Vocabulary.for_text(160)
TEXT, GROUP = [10], [160, 161, 1184, 1185, 1186]


def answer(*parts: object) -> list[int]:
    """Flatten ids and lists of ids, and close the turn."""
    ids: list[int] = []
    for part in parts:
        ids.extend(part if isinstance(part, list) else [part])  # type: ignore[arg-type]
    return [*ids, SMALL.eot]


def test_released_layout() -> None:
    released = Vocabulary()
    assert (released.linguistic_start, released.semantic_start, released.audio_stop) == (65536, 66560, 70656)
    assert released.size == 74752
    assert released.padded_size(128 * 8) == 74752  # 73 × 1024: no padding at TP8


def test_modality_agrees_between_numpy_and_torch() -> None:
    ids = np.array([0, 159, 160, 1183, 1184, 5279, 5280, 5281])
    expected = [0, 0, 1, 1, 2, 2, 0, 0]
    assert SMALL.modality(ids).tolist() == expected
    assert SMALL.modality(torch.from_numpy(ids)).tolist() == expected


def test_round_trip_through_yaml(tmp_path) -> None:
    SMALL.save(tmp_path / "vocabulary.yaml")
    assert Vocabulary.load(tmp_path / "vocabulary.yaml") == SMALL


def test_marker_inside_a_codebook_is_refused() -> None:
    with pytest.raises(ValueError, match="audio_start = 66000 must lie in"):
        Vocabulary(audio_start=66000)


@pytest.mark.parametrize("chunk", [0, 7, 12])
def test_audio_chunk_must_be_whole_groups(chunk: int) -> None:
    with pytest.raises(ValueError, match="multiple of 5"):
        AnswerFormat(audio_chunk=chunk)


def test_layouts_without_chunks_take_none() -> None:
    assert [str(AnswerFormat()), str(AnswerFormat(6, 50)), str(AnswerFormat(layout="text_first"))] == [
        "10:15",
        "6:50",
        "text_first",
    ]
    with pytest.raises(ValueError, match="layout = 'audio_only' has no chunks; take out text_chunk and audio_chunk"):
        AnswerFormat(text_chunk=6, layout="audio_only")
    with pytest.raises(ValueError, match="layout = 'text_last': expected interleaved, text_first or audio_only"):
        AnswerFormat(layout="text_last")  # type: ignore[arg-type]


START, END = SMALL.audio_start, SMALL.audio_end


@pytest.mark.parametrize(
    "ids",
    [
        answer(TEXT * 4, START, GROUP * 7, END),  # short text, then all audio
        answer(TEXT * 10, START, GROUP * 3, TEXT * 2, GROUP * 5, END),  # 10:15, then the rest
        answer(TEXT * 10, START, GROUP * 3, TEXT * 10, GROUP * 3, TEXT, GROUP, END),
        answer(TEXT * 10, START, GROUP * 8, END),  # text ended exactly with its chunk
        answer(TEXT * 10, START, GROUP, END, TEXT * 14),  # audio ended first: the rest of the text follows
        answer(TEXT * 3, START, GROUP, END, TEXT * 3, START, GROUP * 2, END),  # two segments
    ],
)
def test_grammatical_answers(ids: list[int]) -> None:
    assert GroupGrammar(SMALL).accepts(ids)


@pytest.mark.parametrize(
    "ids",
    [
        answer(START, GROUP, END),  # text comes first
        answer(TEXT * 11, START, GROUP, END),  # a chunk holds ten
        answer(TEXT * 3, START, END),  # empty segment
        answer(TEXT * 3, START, GROUP[:4], END),  # incomplete group
        answer(TEXT * 3, START, GROUP, TEXT, GROUP, END),  # text was over after a short chunk
        answer(TEXT * 10, START, GROUP * 2, TEXT, GROUP, END),  # text inside an audio chunk
        answer(TEXT * 3, START, [161], GROUP, END),  # a stray token shifts the group
        answer(TEXT * 3, START, GROUP),  # segment not closed
        answer(TEXT * 3),  # nothing spoken
        answer(TEXT * 3, START, GROUP, END, START, GROUP * 3, TEXT, GROUP, END),  # a segment without text gets none
    ],
)
def test_ungrammatical_answers(ids: list[int]) -> None:
    assert not GroupGrammar(SMALL).accepts(ids)


TEXT_FIRST, AUDIO_ONLY = AnswerFormat(layout="text_first"), AnswerFormat(layout="audio_only")


@pytest.mark.parametrize(
    ("answer_format", "ids", "lawful"),
    [
        (AnswerFormat(6, 50), answer(TEXT * 6, START, GROUP * 10, TEXT * 2, GROUP * 3, END), True),
        (AnswerFormat(6, 50), answer(TEXT * 10, START, GROUP * 3, END), False),  # six in a row
        (AnswerFormat(6, 50), answer(TEXT * 6, START, GROUP * 3, TEXT * 2, GROUP, END), False),  # after ten groups
        (AnswerFormat(3, 5), answer(TEXT * 3, START, GROUP, TEXT * 3, GROUP, TEXT, GROUP * 4, END), True),
        (AnswerFormat(3, 5), answer(TEXT * 3, START, GROUP * 2, TEXT * 3, GROUP, END), False),
        (TEXT_FIRST, answer(TEXT * 40, START, GROUP * 20, END), True),
        (TEXT_FIRST, answer(TEXT, START, GROUP, END, TEXT * 12, START, GROUP * 4, END), True),  # two segments
        (TEXT_FIRST, answer(TEXT * 10, START, GROUP * 3, TEXT, GROUP, END), False),
        (TEXT_FIRST, answer(START, GROUP, END), False),
        (TEXT_FIRST, answer(TEXT, START, GROUP, END, START, GROUP * 3, TEXT, GROUP, END), False),
        (AUDIO_ONLY, answer(START, GROUP * 20, END), True),
        (AUDIO_ONLY, answer(START, GROUP, END, START, GROUP * 4, END), True),
        (AUDIO_ONLY, answer(TEXT, START, GROUP, END), False),
        (AUDIO_ONLY, answer(START, GROUP * 3, TEXT, GROUP, END), False),
        (AUDIO_ONLY, answer(START, GROUP, END, TEXT), False),
        (AUDIO_ONLY, answer(), False),
    ],
)
def test_grammar_of_other_formats(answer_format: AnswerFormat, ids: list[int], lawful: bool) -> None:
    assert GroupGrammar(SMALL, answer_format).accepts(ids) == lawful


@pytest.mark.parametrize("answer_format", [AnswerFormat(), AnswerFormat(3, 5), TEXT_FIRST, AUDIO_ONLY], ids=str)
@given(random=st.randoms(use_true_random=False))
def test_every_allowed_walk_is_grammatical(answer_format: AnswerFormat, random) -> None:
    """Choosing freely among what is allowed never leads into a dead end and ends in an accepted answer."""
    examples = {
        "text": 10,
        "linguistic": 160,
        "semantic": 1184,
        "audio_start": START,
        "audio_end": END,
        "eot": SMALL.eot,
    }
    grammar, ids = GroupGrammar(SMALL, answer_format), []
    for _ in range(400):
        allowed = sorted(grammar.allowed())
        assert allowed
        ids.append(examples[random.choice(allowed)])
        grammar.advance(ids[-1])
        if grammar.finished:
            break
    if grammar.finished:
        assert GroupGrammar(SMALL, answer_format).accepts(ids)


def test_error_says_what_was_expected() -> None:
    with pytest.raises(ValueError, match="semantic token 1184 is not allowed here; expected text"):
        GroupGrammar(SMALL).advance(1184)
