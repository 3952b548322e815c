"""Cached generation is uncached generation; a batch is its rows; constrained answers are lawful; seeds decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from megatron_aqaa import platform
from megatron_aqaa.inference.engine import AnswerEngine
from megatron_aqaa.inference.sampling import SPEECH, Sampling
from megatron_aqaa.model import AQAAModel, ModelConfig
from megatron_aqaa.vocabulary import AnswerFormat, GroupGrammar, Vocabulary

VOCABULARY = Vocabulary.for_text(24)
TINY = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    init_method_std=0.3,  # large: distributions of a random model must differ from position to position
    params_dtype="fp64",
)
L, S = VOCABULARY.linguistic_start, VOCABULARY.semantic_start
PROMPTS = [
    [VOCABULARY.bot, 7, VOCABULARY.audio_start, L + 5, L + 9, S + 1, S + 2, S + 3, VOCABULARY.audio_end, 8, 9],
    [VOCABULARY.bot, 11],
    [VOCABULARY.bot, 7, 12, 13, 14, 15, 16, L + 1000, L + 3],
]


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    platform.initialize(platform.ParallelConfig(), seed=0)
    yield
    platform.shutdown()


@pytest.fixture(params=["sqrt_alibi", "rope", "group_positions"])
def engine(one_process: None, request: pytest.FixtureRequest) -> AnswerEngine:
    torch.manual_seed(0)
    positions = {"position_embedding": request.param} if request.param != "group_positions" else {}
    extras = {"group_position_embedding": True, "codebook_type_embedding": True} if not positions else {}
    model = AQAAModel(replace(TINY, **positions, **extras), VOCABULARY)
    with torch.no_grad():  # endings must be likely now and then, or all answers would be as long as they may
        model.output_layer.weight[[VOCABULARY.eot, VOCABULARY.audio_end]] *= 20
    return AnswerEngine(model, VOCABULARY)


@torch.inference_mode()
def greedy_without_cache(engine: AnswerEngine, prompt: list[int], num_tokens: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(num_tokens):
        logits = engine.model(torch.tensor([token_ids]))[0, -1]
        token_ids.append(int(logits.argmax()))
        if token_ids[-1] == VOCABULARY.eot:
            break
    return token_ids[len(prompt) :]


def test_cached_generation_equals_uncached(engine: AnswerEngine) -> None:
    for prompt in PROMPTS:
        (answer,) = engine.generate([prompt], Sampling(constrained=False, max_new_tokens=20))
        assert answer.token_ids == greedy_without_cache(engine, prompt, 20)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_is_its_rows(engine: AnswerEngine, temperature: float) -> None:
    prompts, sampling = PROMPTS * 2, Sampling(temperature, seed=5, max_new_tokens=60)
    batch = engine.generate(prompts, sampling)
    alone = [engine.generate([p], replace(sampling, seed=5 + i))[0] for i, p in enumerate(prompts)]
    assert batch == alone
    if temperature:
        assert len({len(answer.token_ids) for answer in batch}) > 2  # rows were dropped on the way
    engine.max_batch_size = 2
    assert engine.generate(prompts, sampling) == batch


def test_several_answers_to_one_prompt_are_as_if_each_was_asked_alone(engine: AnswerEngine) -> None:
    prompts = [PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    seeds, sampling = [7, 3, 9, 4, 7], Sampling(temperature=1.0, max_new_tokens=60)
    answers = engine.generate(prompts, sampling, seeds=seeds)
    for prompt, seed, answer in zip(prompts, seeds, answers, strict=True):
        assert engine.generate([prompt], replace(sampling, seed=seed)) == [answer]
    assert answers[0] == answers[4] != answers[2]


def test_streaming_yields_the_same_tokens(engine: AnswerEngine) -> None:
    sampling = Sampling(temperature=0.8, seed=3, max_new_tokens=40)
    assert list(engine.stream(PROMPTS[0], sampling)) == engine.generate(PROMPTS[:1], sampling)[0].token_ids


@pytest.mark.parametrize("chunks", [(10, 15), (2, 5)])
def test_constrained_answers_are_always_lawful(engine: AnswerEngine, chunks: tuple[int, int]) -> None:
    engine.answer_format = AnswerFormat(*chunks)
    for seed in (0, 8, 16):
        sampling = Sampling(temperature=1.5, seed=seed, max_new_tokens=15 + 2 * seed)
        for answer in engine.generate(PROMPTS[1:2] * 8, sampling):
            assert answer.finished
            assert len(answer.token_ids) <= sampling.max_new_tokens
            assert GroupGrammar(VOCABULARY, engine.answer_format).accepts(answer.token_ids)


def test_an_opening_is_the_beginning_of_the_answer_up_to_its_speech(engine: AnswerEngine) -> None:
    sampling = Sampling(temperature=1.0, seed=2, max_new_tokens=60)
    whole = engine.generate(PROMPTS * 3, sampling)
    openings = engine.generate(PROMPTS * 3, replace(sampling, opening=True))
    for answer, opening in zip(whole, openings, strict=True):
        assert opening.finished
        assert opening.token_ids == answer.token_ids[: answer.token_ids.index(VOCABULARY.audio_start) + 1]
    (free,) = engine.generate(PROMPTS[:1], Sampling(constrained=False, opening=True, max_new_tokens=60))
    ends = [token_id in (VOCABULARY.eot, VOCABULARY.audio_start) for token_id in free.token_ids]
    assert free.finished == any(ends)
    assert not any(ends[:-1])


def test_speech_has_a_temperature_of_its_own(engine: AnswerEngine) -> None:
    v, sampling = VOCABULARY, Sampling(temperature=1.2, seed=2, max_new_tokens=60)
    cold = engine.generate(PROMPTS * 3, replace(sampling, speech_temperature=1e-6))
    for prompt, answer in zip(PROMPTS * 3, cold, strict=True):
        logits, grammar = _logits(engine, prompt, answer.token_ids), GroupGrammar(VOCABULARY)
        for place, token_id in enumerate(answer.token_ids[:-10]):  # further on the length may force the end
            if grammar.allowed() <= SPEECH:  # after a whole chunk words may come, at the temperature of words
                allowed = engine.mask(grammar.allowed())
                assert token_id == int(logits[place].masked_fill(~allowed, -torch.inf).argmax())
            grammar.advance(token_id)
    words = [[i for i in answer.token_ids[:11] if i < v.text_size] for answer in cold]
    assert len({tuple(of_answer) for of_answer in words}) == len(words)  # the words stay sampled
    assert engine.generate(PROMPTS, replace(sampling, speech_temperature=1.2)) == engine.generate(PROMPTS, sampling)


@torch.inference_mode()
def _logits(engine: AnswerEngine, prompt: list[int], token_ids: list[int]) -> torch.Tensor:
    """[n, V]: what each token of an answer was drawn from."""
    return engine.model(torch.tensor([[*prompt, *token_ids[:-1]]]))[0, len(prompt) - 1 :]


def test_the_same_seed_gives_the_same_answer_and_another_does_not(engine: AnswerEngine) -> None:
    sampling = Sampling(temperature=1.0, seed=1, max_new_tokens=40)
    first, again = (engine.generate(PROMPTS, sampling) for _ in range(2))
    assert first == again
    assert engine.generate(PROMPTS, replace(sampling, seed=100)) != first


def test_an_unconstrained_answer_may_stay_unfinished(engine: AnswerEngine) -> None:
    answers = engine.generate(PROMPTS, Sampling(temperature=2.0, constrained=False, max_new_tokens=12))
    assert all(answer.finished == (answer.token_ids[-1] == VOCABULARY.eot) for answer in answers)
    assert all(len(answer.token_ids) == 12 for answer in answers if not answer.finished)


def test_no_prompts_no_answers_and_an_empty_prompt_is_refused(engine: AnswerEngine) -> None:
    assert engine.generate([]) == []
    with pytest.raises(ValueError, match="empty prompt"):
        engine.generate([[5], []])
