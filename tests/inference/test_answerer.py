"""The chain holds together: the same answer at once and in pieces, words as they come, every missing part named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_aqaa.inference.answerer import SpokenAnswerer
from megatron_aqaa.inference.sampling import Sampling
from megatron_aqaa.vocabulary import GroupGrammar
from tests.inference.tiny_run import make_run

QUESTION = 0.3 * torch.sin(torch.arange(16_000) / 8)
SAMPLING = Sampling(temperature=1.0, seed=4, max_new_tokens=90)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def answerer(run: Path) -> Iterator[SpokenAnswerer]:
    with SpokenAnswerer.load(run) as answerer:
        yield answerer


def test_prompt_is_a_human_turn_and_the_head_of_the_answer(answerer: SpokenAnswerer) -> None:
    prompt, v = answerer.prompt(QUESTION), answerer.vocabulary
    human, assistant = (answerer.text_tokenizer.encode_role(role) for role in ("human", "assistant"))
    groups = -(-len(QUESTION) // 1920)
    assert prompt[: 2 + len(human)] == [v.bot, *human, v.audio_start]
    assert prompt[2 + len(human) + 5 * groups :] == [v.audio_end, v.eot, v.bot, *assistant]
    assert all(v.is_audio(token_id) for token_id in prompt[2 + len(human) :][: 5 * groups])


def test_answer_has_the_words_and_the_length_of_its_tokens(answerer: SpokenAnswerer) -> None:
    answer = answerer.answer(QUESTION, SAMPLING)
    audio = [token_id for token_id in answer.token_ids if answerer.vocabulary.is_audio(token_id)]
    assert GroupGrammar(answerer.vocabulary).accepts(answer.token_ids)
    assert len(answer.waveform) == len(audio) // 5 * 1920
    assert answer.text == answerer.text_tokenizer.decode([i for i in answer.token_ids if 4 < i < 41])


def test_words_are_told_one_by_one_and_make_up_the_text(answerer: SpokenAnswerer) -> None:
    told: list[str] = []
    answer = answerer.answer(QUESTION, SAMPLING, told.append)
    assert "".join(told) == answer.text
    assert len(told) > 1
    assert all(told)


def test_stream_says_the_same_in_pieces(answerer: SpokenAnswerer) -> None:
    told: list[str] = []
    answer = answerer.answer(QUESTION, SAMPLING)
    pieces = list(answerer.stream(QUESTION, SAMPLING, told.append))
    assert "".join(told) == answer.text
    assert sum(map(len, pieces)) == len(answer.waveform)
    assert len(pieces) > 1


def test_first_sound_comes_before_the_last_word_is_chosen(answerer: SpokenAnswerer) -> None:
    drawn: list[int] = []
    tokens = answerer.engine.stream(answerer.prompt(QUESTION), SAMPLING)
    answerer.engine.stream = lambda *_: (drawn.append(t) or t for t in tokens)  # type: ignore[method-assign]
    try:
        next(answerer.stream(QUESTION, SAMPLING))
    finally:
        del answerer.engine.stream
    assert drawn[-1] != answerer.vocabulary.eot


def test_the_same_seed_gives_the_same_sound(answerer: SpokenAnswerer) -> None:
    first, again = (answerer.answer(QUESTION, SAMPLING) for _ in range(2))
    assert first.token_ids == again.token_ids
    assert torch.equal(first.waveform, again.waveform)


def test_no_audio_is_no_sound(answerer: SpokenAnswerer, caplog: pytest.LogCaptureFixture) -> None:
    v = answerer.vocabulary
    assert len(answerer.speech([7, 8, v.eot])) == 0
    cut_off = [7, v.audio_start, v.linguistic_start, v.linguistic_start, v.semantic_start]
    assert not caplog.records
    assert len(answerer.speech(cut_off)) == 0
    assert "the stream ends inside a group, after 3 of its 5 ids" in caplog.text


def test_a_stray_token_costs_no_more_than_its_group(answerer: SpokenAnswerer) -> None:
    """A model that is not held to the grammar says one group less, not noise."""
    v = answerer.vocabulary
    group = [v.linguistic_start, v.linguistic_start + 1, *range(v.semantic_start, v.semantic_start + 3)]
    assert torch.equal(answerer.speech([*group, *group[1:], *group]), answerer.speech([*group, *group]))


def test_a_checkpoint_can_be_named(run: Path, answerer: SpokenAnswerer) -> None:
    expected = answerer.engine.model.state_dict()["embedding.word_embeddings.weight"]
    (checkpoint,) = (run / "sft" / "checkpoints").iterdir()
    again = SpokenAnswerer.load(run, model=checkpoint)
    assert torch.equal(again.engine.model.state_dict()["embedding.word_embeddings.weight"], expected)


def test_missing_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no such run directory; run `make demo` first"):
        SpokenAnswerer.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "part",
    [
        "tokenizer/semantic.pt",
        "tokenizer/text.model",
        "vocoder/generator/model.pt",
        "sft/checkpoints",
        "sft/config.yaml",
    ],
)
def test_a_missing_part_is_named(run: Path, answerer: SpokenAnswerer, tmp_path: Path, part: str) -> None:
    damaged = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(damaged / part) if (damaged / part).is_dir() else (damaged / part).unlink()
    with pytest.raises(ValueError, match=Path(part).name.split(".")[0]):
        SpokenAnswerer.load(damaged)
