"""Pairs of a model's own answers: what is kept, what is counted, and that blocks and workers change nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from megatron_aqaa import platform
from megatron_aqaa.data.chat_records import ChatReader, PreferenceRecord
from megatron_aqaa.evaluation.pair_blocks import make_pairs
from megatron_aqaa.evaluation.preference_pairs import OUTCOMES, PairMaker, PairsConfig
from megatron_aqaa.evaluation.sampled_answers import HeardQuestion, SampledAnswer, hear, hear_revoiced
from megatron_aqaa.inference.answerer import SpokenAnswerer
from megatron_aqaa.tokenizer.chat import AudioSegment, Turn
from tests.inference.tiny_run import make_run, make_speech

SPLITS = ("unseen_voice", "unseen_wording")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("run"))
    make_speech(run)
    return run


@pytest.fixture(scope="module")
def maker(run: Path) -> Iterator[PairMaker]:
    config = PairsConfig(run, run / "sft", run / "pairs.jsonl", SPLITS, num_answers=3, max_new_tokens=40)
    yield PairMaker(SpokenAnswerer.load(run), config)
    platform.shutdown()


def question(maker: PairMaker, style: str = "neutral") -> HeardQuestion:
    recording = next(r for r in maker.recordings if r.role == "user" and r.style == style)
    return hear(recording, maker.tokens)


def said(maker: PairMaker, asked: HeardQuestion, text: str, groups: int = 4, number: int = 0) -> SampledAnswer:
    """An answer as the model would give it."""
    v = maker.vocabulary
    audio = [v.linguistic_start + number, v.linguistic_start, *[v.semantic_start] * 3] * groups
    encoded = maker.sampler.answerer.template.encode([Turn("assistant", (text, AudioSegment(audio)))])
    token_ids = encoded.token_ids[encoded.loss_mask == 1].tolist()
    return SampledAnswer(asked, number, token_ids, text)


def test_a_right_answer_beats_a_wrong_one(maker: PairMaker) -> None:
    asked = question(maker)
    right, wrong = asked.recording.answer, "it says quack"
    pair = maker.pair([said(maker, asked, wrong, number=0), said(maker, asked, right, number=1)])
    assert pair is not None
    assert (pair["chosen"][0]["text"], pair["rejected"][0]["text"]) == (right, wrong)
    assert pair["chosen"][1]["codes"][:2] == [1, 0]
    assert (pair["meta"]["chosen"]["score"], pair["meta"]["rejected"]["score"]) == (7.0, 0.0)
    assert pair["meta"]["answer"] == right


def test_the_shortest_right_answer_is_chosen_and_the_first_wrong_one_rejected(maker: PairMaker) -> None:
    asked = question(maker)
    answers = [
        said(maker, asked, asked.recording.answer, groups=9, number=0),
        said(maker, asked, "it says quack", number=1),
        said(maker, asked, asked.recording.answer, groups=5, number=2),
        said(maker, asked, "what is one plus two", number=3),
    ]
    pair = maker.pair(answers)
    assert pair is not None
    assert len(pair["chosen"][1]["codes"]) == 25
    assert pair["rejected"][0]["text"] == "it says quack"


def test_no_pair_without_a_difference_in_text(maker: PairMaker) -> None:
    asked = question(maker, "slow")
    both_right = [said(maker, asked, asked.recording.answer, groups, number=groups) for groups in (3, 30)]
    both_wrong = [said(maker, asked, "it says quack", groups, number=groups) for groups in (3, 30)]
    assert maker.pair(both_right) is None
    assert maker.pair(both_wrong) is None


def test_an_answer_in_unusual_pieces_is_not_used(maker: PairMaker) -> None:
    asked = question(maker)
    tokenizer = maker.sampler.answerer.text_tokenizer
    right = said(maker, asked, asked.recording.answer)
    letters = [tokenizer.processor.piece_to_id(letter) for letter in "▁it▁is"]
    pieces = SampledAnswer(asked, 1, [*letters, *right.token_ids[len(tokenizer.encode(right.text)) :]], "it is")
    assert tokenizer.decode(letters) == "it is" and tokenizer.encode("it is") != letters
    assert maker.sampler.content(pieces) is None
    assert maker.pair([right, pieces]) is None


def test_the_margin_is_asked_for(maker: PairMaker, run: Path) -> None:
    strict = PairMaker(maker.sampler.answerer, dataclasses.replace(maker.config, margin=7.5))
    asked = question(strict)
    answers = [said(strict, asked, asked.recording.answer), said(strict, asked, "it says quack")]
    assert strict.pair(answers) is None


def test_every_question_is_counted_once(maker: PairMaker) -> None:
    questions = [r for r in maker.recordings if r.split in SPLITS]
    pairs, counts = maker.make(questions)
    assert sum(counts[outcome] for outcome in OUTCOMES) == len(questions)
    assert counts["answers"] == 3 * len(questions)
    assert counts["paired"] == len(pairs)


def test_revoiced_questions_keep_their_words_and_change_their_length(maker: PairMaker) -> None:
    recordings = [r for r in maker.recordings if r.split in SPLITS]
    tokenizer = maker.sampler.answerer.tokenizer
    first, again, other = (hear_revoiced(recordings, tokenizer, 1.5, seed) for seed in (0, 0, 1))
    assert [heard.recording for heard in first] == recordings
    for heard, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(heard.audio_ids, same.audio_ids)
        recorded = len(maker.tokens[heard.recording.line].token_ids)
        assert recorded / 1.5 - 5 <= len(heard.audio_ids) <= recorded * 1.5 + 5
    assert len({len(heard.audio_ids) for heard in first}) > 3  # recordings have three lengths
    assert any(len(one.audio_ids) != len(two.audio_ids) for one, two in zip(first, other, strict=True))


def test_an_answer_does_not_depend_on_what_is_asked_beside_it(maker: PairMaker) -> None:
    asked = [hear(r, maker.tokens) for r in maker.recordings if r.split == SPLITS[0]]
    together = maker.sampler.answers([(q, number) for q in asked for number in range(2)])
    alone = maker.sampler.answers([(asked[1], 1)])
    assert together[3].token_ids == alone[0].token_ids
    assert together[2].token_ids != together[3].token_ids


def test_an_opening_is_the_beginning_of_the_answer(maker: PairMaker) -> None:
    wanted = [(question(maker), number) for number in range(8)]
    chunk = maker.sampler.answerer.engine.answer_format.text_chunk
    whole, openings = maker.sampler.answers(wanted), maker.sampler.openings(wanted)
    for answer, opening in zip(whole, openings, strict=True):
        first = next(place for place, token in enumerate(answer.token_ids) if token == maker.vocabulary.audio_start)
        assert opening.token_ids[: min(first, chunk)] == answer.token_ids[: min(first, chunk)]


@pytest.fixture(scope="module")
def settings(run: Path) -> PairsConfig:
    return PairsConfig(
        run, run / "sft", run / "made" / "pairs.jsonl", SPLITS, num_answers=3, temperature=1.0,
        max_new_tokens=40, num_workers=0, questions_per_block=3,
    )  # fmt: skip


def test_without_a_pair_the_remedy_is_named(settings: PairsConfig) -> None:
    with pytest.raises(ValueError, match="no pair among 8 questions: raise temperature, num_answers or revoicing"):
        make_pairs(settings)


def test_blocks_are_joined_read_back_and_kept(settings: PairsConfig, maker: PairMaker, tmp_path: Path) -> None:
    config = dataclasses.replace(settings, output=tmp_path / "pairs.jsonl")
    with pytest.raises(ValueError, match="no pair"):
        make_pairs(config)
    blocks = sorted((tmp_path / "pairs.blocks").iterdir())
    assert len(blocks) == 3
    asked = question(maker)
    pair = maker.pair([said(maker, asked, asked.recording.answer), said(maker, asked, "it says quack")])
    blocks[1].write_text(json.dumps({"pairs": [pair], "counts": {"paired": 1, "all_wrong": 2}}))
    progress: list[int] = []
    counts = make_pairs(config, progress.append)
    assert progress == [8]  # nothing was made again
    assert counts["paired"] == 1
    assert json.loads((tmp_path / "pairs.counts.json").read_text()) == counts
    (record,) = ChatReader("preference", maker.vocabulary).read(config.output)
    assert isinstance(record, PreferenceRecord)
    assert record.chosen.words == asked.recording.answer


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"num_answers": 1}, "num_answers = 1: must be at least 2"),
        ({"temperature": 0.0}, "temperature = 0.0: must be above 0"),
        ({"revoicing": 0.8}, r"revoicing = 0.8: must lie in \[1, 2\)"),
        ({"margin": 0.0}, "margin = 0.0: must be above 0"),
    ],
)
def test_settings_without_sense_are_refused(setting: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PairsConfig(Path(), Path(), Path(), **setting)  # type: ignore[arg-type]


def test_an_unknown_split_is_named(settings: PairsConfig) -> None:
    with pytest.raises(ValueError, match="no questions in the split 'train'"):
        make_pairs(dataclasses.replace(settings, splits=("train",)))
