"""Preference pairs of a model's own answers: sample several to a question, rate them, keep a better and a worse one.

Only text carries preference in DPO (audio tokens are masked), so the halves must differ in their text. Two right
answers never do: a pair is a right answer against a wrong one, and among the right ones style and brevity choose.
Nothing is shuffled or made up: the model itself has said both halves, token by token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import Recording, read_recordings
from megatron_aqaa.evaluation.preference_rules import AnswerRules, Rating
from megatron_aqaa.evaluation.sampled_answers import (
    AnswerSampler,
    HeardQuestion,
    SampledAnswer,
    hear,
    hear_revoiced,
    spoken_question,
)
from megatron_aqaa.inference.answerer import SpokenAnswerer
from megatron_aqaa.inference.sampling import Sampling

RIGHT_ANSWERS = 2
"""So many of the right answers to a question are finished, for style and brevity to choose from: finishing costs five
times as much as finding out that they are right."""

OUTCOMES = ("paired", "all_right", "all_wrong", "unusable")
"""What becomes of a question: a pair, or why there is none. "unusable": right and wrong openings, but no whole answers
that text and codes can tell, or too small a margin."""


@dataclass(frozen=True)
class PairsConfig:
    """What to ask, how to sample, what to keep.

    Attributes:
        run: directory with `speech/`, `tokens/`, `tokenizer/`, `vocoder/`.
        model: run or checkpoint of the language model that answers.
        output: JSON lines, one pair each; counts go beside it, to `.counts.json`.
        splits: whose questions are asked. Pairs to train on come from "train" alone.
        num_questions: of each split, the first so many.
        num_answers: sampled to each question.
        temperature: of sampling.
        speech_temperature: of the audio codes; None: `temperature`.
        revoicing: questions are asked by other voices than recorded them, up to this factor, see `hear_revoiced`; 1
            leaves them as they are.
        margin: least difference of the scores of both halves (`preference_rules`).
        max_new_tokens: longest answer.
        seed: of voices and answers.
        num_workers: processes; does not change the result. 0 works in the calling process.
        questions_per_block: unit of work and of resuming.
    """

    run: Path
    model: Path
    output: Path
    splits: tuple[str, ...] = ("train",)
    num_questions: int = 2000
    num_answers: int = 4
    temperature: float = 1.0
    speech_temperature: float | None = None
    revoicing: float = 1.0
    margin: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    num_workers: int = 2
    questions_per_block: int = 128

    def __post_init__(self) -> None:
        for name, least in {"num_questions": 1, "num_answers": 2, "num_workers": 0, "questions_per_block": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")
        if not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature}: must be above 0, or all answers are the same")
        if not 1 <= self.revoicing < 2:
            raise ValueError(f"revoicing = {self.revoicing}: must lie in [1, 2); 1 leaves questions as they are")
        if not self.margin > 0:
            raise ValueError(f"margin = {self.margin}: must be above 0, or equal answers make a pair")


class PairMaker:
    """Makes the pairs of some questions.

    Args:
        answerer: the model that answers.
        config: how.
    """

    def __init__(self, answerer: SpokenAnswerer, config: PairsConfig) -> None:
        self.config, self.vocabulary = config, answerer.vocabulary
        self.recordings = read_recordings(config.run / "speech" / "manifest.jsonl")
        self.tokens = Documents(config.run / "tokens" / "audio")
        self.rules = AnswerRules(self.recordings, self.tokens)
        sampling = Sampling(
            config.temperature,
            seed=config.seed,
            max_new_tokens=config.max_new_tokens,
            speech_temperature=config.speech_temperature,
        )
        self.sampler = AnswerSampler(answerer, sampling)

    def make(self, questions: Sequence[Recording]) -> tuple[list[dict[str, Any]], Counter[str]]:
        """Pairs, and how many questions had which of `OUTCOMES`; also "answers" and, of these, "right"."""
        config, counts = self.config, Counter[str]()
        heard = self._hear(questions)
        openings = self.sampler.openings([(q, number) for q in heard for number in range(config.num_answers)])
        contested = []
        for group in _groups(openings, config.num_answers):
            right = [opening for opening in group if self.sampler.opens_right(opening)]
            counts.update({"answers": len(group), "right": len(right)})
            if 0 < len(right) < len(group):
                wrong = next(opening for opening in group if opening not in right)
                contested.append([*right[:RIGHT_ANSWERS], wrong])
            else:
                counts["all_right" if right else "all_wrong"] += 1
        pairs = [pair for pair in self._pairs(contested) if pair is not None]
        counts.update({"paired": len(pairs), "unusable": len(contested) - len(pairs)})
        return pairs, counts

    def _hear(self, questions: Sequence[Recording]) -> list[HeardQuestion]:
        if self.config.revoicing == 1:
            return [hear(question, self.tokens) for question in questions]
        tokenizer = self.sampler.answerer.tokenizer
        return hear_revoiced(questions, tokenizer, self.config.revoicing, self.config.seed)

    def _pairs(self, contested: Sequence[Sequence[SampledAnswer]]) -> Iterator[dict[str, Any] | None]:
        """Finish the openings, and make of those to one question a pair."""
        wanted = [(opening.question, opening.number) for openings in contested for opening in openings]
        answers = iter(self.sampler.answers(wanted))
        return (self.pair(list(islice(answers, len(openings)))) for openings in contested)

    def pair(self, answers: Sequence[SampledAnswer]) -> dict[str, Any] | None:
        """The best right answer against the first wrong one, by the order in which they were sampled."""
        usable = [answer for answer in answers if self.sampler.content(answer) is not None]
        chosen = self._best([answer for answer in usable if _is_right(answer)])
        rejected = next((answer for answer in usable if not _is_right(answer)), None)
        if chosen is None or rejected is None:
            return None
        ratings = self.sampler.rate(chosen, self.rules), self.sampler.rate(rejected, self.rules)
        if ratings[0].score - ratings[1].score < self.config.margin:
            return None
        return self._record(chosen, rejected, *ratings)

    def _best(self, right: Sequence[SampledAnswer]) -> SampledAnswer | None:
        """The shortest that follows its style, or the shortest: few have to be listened to."""
        by_length = sorted(right, key=lambda answer: len(answer.token_ids))
        follows = (answer for answer in by_length if self.sampler.rate(answer, self.rules).style_followed is not False)
        return next(follows, by_length[0] if by_length else None)

    def _record(
        self, chosen: SampledAnswer, rejected: SampledAnswer, of_chosen: Rating, of_rejected: Rating
    ) -> dict[str, Any]:
        question = chosen.question
        asked = {key: getattr(question.recording, key) for key in ("id", "split", "speaker", "style", "answer")}
        ratings = {"chosen": of_chosen, "rejected": of_rejected}
        return {
            "prompt": [{"role": "user", "content": spoken_question(question, self.vocabulary)}],
            "chosen": self.sampler.content(chosen),
            "rejected": self.sampler.content(rejected),
            "meta": {**asked, **{half: {**vars(rating), "score": rating.score} for half, rating in ratings.items()}},
        }


def _groups(answers: Sequence[SampledAnswer], size: int) -> Iterator[Sequence[SampledAnswer]]:
    return (answers[start : start + size] for start in range(0, len(answers), size))


def _is_right(answer: SampledAnswer) -> bool:
    return answer.text == answer.question.recording.answer
