"""Masks agree with the grammar, every forced ending is lawful, draws follow the distribution and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_aqaa.inference.sampling import CLOSING_TOKENS, KINDS, GrammarMask, Sampling, allowed_kinds, sample
from megatron_aqaa.vocabulary import AnswerFormat, GroupGrammar, Vocabulary

VOCABULARY = Vocabulary.for_text(32)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, Vocabulary(), Vocabulary(audio_start=10, audio_end=11)])
def test_masks_agree_with_the_grammar_on_every_id(vocabulary: Vocabulary) -> None:
    mask, grammar = GrammarMask(vocabulary), GroupGrammar(vocabulary)
    masks = {kind: mask(frozenset({kind})).tolist() for kind in KINDS}
    for token_id in range(vocabulary.size):
        found = [kind for kind in KINDS if masks[kind][token_id]]
        try:
            assert found == [grammar.kind(token_id)]
        except ValueError:  # never part of an answer
            assert found == []


def test_mask_of_several_kinds_is_their_union() -> None:
    mask = GrammarMask(VOCABULARY)
    both = mask(frozenset({"text", "eot"}))
    assert both.equal(mask(frozenset({"text"})) | mask(frozenset({"eot"})))
    assert mask(frozenset({"text", "eot"})) is both  # built once


@given(
    st.integers(CLOSING_TOKENS, 120), st.randoms(use_true_random=False), st.sampled_from([(10, 15), (1, 5), (3, 10)])
)
def test_a_bounded_answer_always_ends_lawfully(max_new_tokens: int, random, chunks: tuple[int, int]) -> None:
    representative = {
        "text": 9,
        "linguistic": VOCABULARY.linguistic_start,
        "semantic": VOCABULARY.semantic_start,
        "audio_start": VOCABULARY.audio_start,
        "audio_end": VOCABULARY.audio_end,
        "eot": VOCABULARY.eot,
    }
    grammar = GroupGrammar(VOCABULARY, AnswerFormat(*chunks))
    drawn: list[int] = []
    for step in range(max_new_tokens):
        kinds = sorted(allowed_kinds(grammar, max_new_tokens - step))
        drawn.append(representative[random.choice(kinds)])
        grammar.advance(drawn[-1])
        if grammar.finished:
            break
    assert GroupGrammar(VOCABULARY, AnswerFormat(*chunks)).accepts(drawn)


def test_greedy_takes_the_largest() -> None:
    assert sample(torch.tensor([[0.0, 3.0, 1.0], [5.0, -1.0, 2.0]]), torch.tensor([0.9, 0.9])).tolist() == [1, 0]


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    uniform = (torch.arange(1000) + 0.5) / 1000  # every quantile once: the counts are exact
    drawn = sample(logits.expand(1000, 3), uniform, temperature=1.0)
    assert torch.bincount(drawn).tolist() == [200, 500, 300]
    sharpened = sample(logits.expand(1000, 3), uniform, temperature=0.5)  # squares, renormalised: 4, 25, 9 of 38
    assert torch.bincount(sharpened).tolist() == [105, 658, 237]


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(1000, 3)
    uniform = (torch.arange(1000) + 0.5) / 1000
    assert torch.bincount(sample(logits, uniform, 1.0, top_p=0.75)).tolist() == [0, 625, 375]
    assert torch.bincount(sample(logits, uniform, 1.0, top_p=1e-9)).tolist() == [0, 1000]


def test_a_nucleus_is_drawn_from_in_proportion() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 40)
    uniform = (torch.arange(4000) + 0.5) / 4000
    for row in logits:
        descending, order = row.softmax(-1).sort(descending=True)
        inside = order[: int((descending.cumsum(0) < 0.6).sum()) + 1]
        expected = torch.zeros(40).index_copy(0, inside, row.softmax(-1)[inside])
        drawn = torch.bincount(sample(row.expand(4000, 40), uniform, 1.0, top_p=0.6), minlength=40)
        torch.testing.assert_close(drawn / 4000, expected / expected.sum(), atol=1 / 4000, rtol=0)


@given(st.integers(0, 2**31), st.floats(0, 1, exclude_max=True))
@example(seed=0, uniform=1 - 2**-53)
def test_a_forbidden_token_is_never_drawn(seed: int, uniform: float) -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(seed)) * 10
    forbidden = torch.rand(50, generator=torch.Generator().manual_seed(seed + 1)) < 0.8
    forbidden[7] = False
    allowed = logits.masked_fill(forbidden, float("-inf"))
    for top_p in (1.0, 0.9):
        drawn = sample(allowed, torch.tensor([uniform], dtype=torch.float64), temperature=0.7, top_p=top_p)
        assert not forbidden[drawn]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 3}, "at least|shortest"),
        ({"temperature": 1.0, "speech_temperature": 0.0}, "must be above 0"),
        ({"speech_temperature": 0.5}, "no effect"),
        ({"temperature": 1.0, "constrained": False, "speech_temperature": 0.5}, "no effect"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling(**wrong)
