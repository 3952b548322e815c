"""Held-out questions asked, answered, heard and measured: the honest scores of one trained run.

One process generates and speaks; a second one hears and measures. Text is scored on all questions, speech on a sample
spread evenly over them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from megatron_aqaa.audio.io import load_waveform, save_waveform
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import Recording, read_recordings
from megatron_aqaa.evaluation.examiner import Examiner, Finding
from megatron_aqaa.evaluation.judged import JudgedAnswer, save_judged
from megatron_aqaa.evaluation.preference_rules import AnswerRules
from megatron_aqaa.evaluation.ranking import ranked_first
from megatron_aqaa.evaluation.sampled_answers import AnswerSampler, hear
from megatron_aqaa.evaluation.scores import ScoreCard, lawful, lawful_groups
from megatron_aqaa.evaluation.speed import measure_speed
from megatron_aqaa.evaluation.style import StyleCheck, median_manner
from megatron_aqaa.inference.answerer import SpokenAnswerer
from megatron_aqaa.inference.sampling import Sampling

SPLITS = ("unseen_voice", "unseen_wording")
OnProgress = Callable[[str, int, int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class HeldOutConfig:
    """How much is measured, and what it should reach.

    Attributes:
        num_questions: questions of each split.
        num_spoken: of these, spoken and judged, split → number; the speech of none is not even prepared for.
        num_free: questions answered once more without the grammar.
        num_timed: questions answered once more alone, with a clock.
        num_sampled: questions of each split answered once more by sampling, and rated by the rules of preference.
        num_answers: sampled to each of them; several cost less than as many questions.
        temperature: of these answers.
        pairs: prefix of a held-out preference data set, below the run directory; None ranks none.
        max_new_tokens: longest answer.
        targets: score → share, where they differ from those of the full demo.
    """

    num_questions: int = 300
    num_spoken: dict[str, int] = field(default_factory=lambda: {"unseen_voice": 150, "unseen_wording": 60})
    num_free: int = 150
    num_timed: int = 5
    num_sampled: int = 0
    num_answers: int = 1
    temperature: float = 1.0
    pairs: Path | None = None
    max_new_tokens: int = 256
    targets: dict[str, float] = field(default_factory=dict)


class HeldOutTest:
    """Scores a run and keeps what it said.

    Args:
        answerer: the loaded run.
        run: its directory, with `speech/` and `tokens/`.
        config: how much is measured.
        output: of the results; None: `evaluation/` in the run directory.
    """

    def __init__(
        self, answerer: SpokenAnswerer, run: Path, config: HeldOutConfig | None = None, output: Path | None = None
    ) -> None:
        self.answerer, self.run, self.config = answerer, run, config or HeldOutConfig()
        self.directory = output or run / "evaluation"
        self.recordings = read_recordings(run / "speech" / "manifest.jsonl")
        self.questions = [q for split in SPLITS for q in self._of_split(split)[: self.config.num_questions]]
        if not self.questions:
            raise ValueError(f"{run / 'speech' / 'manifest.jsonl'}: no questions in the splits {', '.join(SPLITS)}")
        self.references = _Originals(self.recordings)

    def _of_split(self, split: str) -> list[Recording]:
        return [r for r in self.recordings if r.split == split and r.role == "user" and r.answer]

    def score(self, on_progress: OnProgress = lambda what, done, total: None) -> ScoreCard:
        """Measure everything that the configuration asks for.

        Writes `scores.json`, `scores.txt`, `speed.json`, `samples.jsonl`, `ratings.json` and `wav/`.
        """
        directory = self.directory
        (directory / "wav").mkdir(parents=True, exist_ok=True)
        with Examiner({r.text for r in self.recordings if r.role == "assistant"}) as examiner:
            spoken = [q for split in SPLITS for q in self._sample(split)]
            compared = self.references.neutral if spoken else {}
            neutral = {text: [examiner.measure(path) for path in paths] for text, paths in compared.items()}
            originals = [examiner.examine(self.references.of(question)) for question in spoken]
            answers = self._generate(self.questions, True, on_progress)
            free = self._generate(_spread(self.questions, self.config.num_free), False, on_progress)
            ratings = self._sampled_ratings(on_progress)
            findings = self._speak(spoken, answers, examiner, on_progress)
            manners = {text: median_manner(take.result() for take in takes) for text, takes in neutral.items()}
            check = StyleCheck(manners)
            judged = [self._judged(q, answers[q.id], findings[q.id].result(), check) for q in spoken]
            reference = [self._judged(q, [], f.result(), check) for q, f in zip(spoken, originals, strict=True)]
        outcomes = {**self._text_outcomes(answers, free), **_speech_outcomes(judged, reference), **self._ranked()}
        card = ScoreCard().with_targets(self.config.targets).with_outcomes(outcomes)
        self._save_speed(directory / "speed.json", spoken)  # now that the second process is idle
        save_judged(judged, directory / "samples.jsonl")
        (directory / "ratings.json").write_text(json.dumps(ratings))
        (directory / "scores.txt").write_text(card.table() + "\n")
        card.save(directory / "scores.json")
        return card

    def _sample(self, split: str) -> list[Recording]:
        questions = [question for question in self.questions if question.split == split]
        return _spread(questions, self.config.num_spoken.get(split, 0))

    def _generate(
        self, questions: Sequence[Recording], constrained: bool, on_progress: OnProgress
    ) -> dict[int, list[int]]:
        """Answers' token ids by question."""
        tokens = Documents(self.run / "tokens" / "audio")
        prompts = [self.answerer.prompt_of_tokens(tokens[q.line].token_ids) for q in questions]
        sampling = Sampling(constrained=constrained, max_new_tokens=self.config.max_new_tokens)
        what = "answers" if constrained else "answers without grammar"
        answers = self.answerer.engine.generate(prompts, sampling, lambda done: on_progress(what, done, len(prompts)))
        return {q.id: answer.token_ids for q, answer in zip(questions, answers, strict=True)}

    def _speak(
        self,
        questions: Sequence[Recording],
        answers: dict[int, list[int]],
        examiner: Examiner,
        on_progress: OnProgress,
    ) -> dict[int, Future[Finding]]:
        """Write every answer's waveform and hand it in."""
        findings = {}
        for done, question in enumerate(questions, start=1):
            path = self._answer_path(question)
            save_waveform(self.answerer.speech(answers[question.id]), path)
            findings[question.id] = examiner.examine(path)
            on_progress("speech", done, len(questions))
        return findings

    def _sampled_ratings(self, on_progress: OnProgress) -> dict[int, list[float]]:
        """Scores of the sampled answers by question; equal seeds for every model, so that two can be compared."""
        config, tokens = self.config, Documents(self.run / "tokens" / "audio")
        asked = [q for split in SPLITS for q in _spread(self._of_split(split), config.num_sampled)]
        sampler = AnswerSampler(self.answerer, Sampling(config.temperature, max_new_tokens=config.max_new_tokens))
        wanted = [(hear(question, tokens), number) for question in asked for number in range(config.num_answers)]
        rules = AnswerRules(self.recordings, tokens)
        answers = sampler.answers(wanted, lambda done: on_progress("sampled answers", done, len(wanted)))
        ratings: dict[int, list[float]] = {question.id: [] for question in asked}
        for answer in answers:
            ratings[answer.question.recording.id].append(sampler.rate(answer, rules).score)
        return ratings

    def _ranked(self) -> dict[str, list[bool]]:
        if self.config.pairs is None:
            return {}
        prefix = self.run / self.config.pairs
        return {"ranking": ranked_first(self.answerer.engine.model, prefix, self.answerer.vocabulary)}

    def _save_speed(self, path: Path, questions: Sequence[Recording]) -> None:
        timed = _spread(questions, self.config.num_timed)
        speed = measure_speed(self.answerer, (load_waveform(question.audio) for question in timed))
        if speed is not None:
            path.write_text(json.dumps(asdict(speed)))

    def _answer_path(self, question: Recording) -> Path:
        return self.directory / "wav" / f"{question.id:06d}.wav"

    def _judged(self, q: Recording, token_ids: Sequence[int], finding: Finding, check: StyleCheck) -> JudgedAnswer:
        written = self.answerer.text(token_ids)
        reference = check.references[written if written in check.references else q.answer]
        follows = check.follows_manner(finding.manner, reference, q.style)
        return JudgedAnswer(
            id=q.id,
            split=q.split,
            style=q.style,
            speaker=q.speaker.split("+")[-1],
            question=q.text,
            expected=q.answer,
            written=written,
            heard=finding.heard,
            duration_s=finding.manner.duration_s,
            pitch_hz=finding.manner.f0_hz,
            style_followed=None if q.style == "neutral" else follows,
            question_audio=str(q.audio.relative_to(self.run)),
            answer_audio=os.path.relpath(self._answer_path(q), self.run),
        )

    def _text_outcomes(self, answers: dict[int, list[int]], free: dict[int, list[int]]) -> dict[str, list[bool]]:
        layout = self.answerer.vocabulary, self.answerer.engine.answer_format
        right = {
            f"text_{split}": [self.answerer.text(answers[q.id]) == q.answer for q in self.questions if q.split == split]
            for split in SPLITS
        }
        groups = [outcome for token_ids in free.values() for outcome in lawful_groups(token_ids, layout[0])]
        constrained, unconstrained = lawful(answers.values(), *layout), lawful(free.values(), *layout)
        return {**right, "grammar_constrained": constrained, "grammar_free": unconstrained, "groups_free": groups}


class _Originals:
    """The assistant's own recordings: what the judge and the measures are held against."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self.takes: dict[tuple[str, str], list[Recording]] = {}
        for recording in recordings:
            if recording.role == "assistant":
                self.takes.setdefault((recording.text, recording.style), []).append(recording)
        self.neutral = {
            text: [r.audio for r in takes] for (text, style), takes in self.takes.items() if style == "neutral"
        }

    def of(self, question: Recording) -> Path:
        """A recording of the right answer in the right style; a held-out take where there is one."""
        takes = self.takes.get((question.answer, question.style))
        if not takes:
            raise ValueError(f"record {question.id}: no recording of {question.answer!r} in the style {question.style}")
        return max(takes, key=lambda take: take.split != "train").audio


def _speech_outcomes(judged: Sequence[JudgedAnswer], originals: Sequence[JudgedAnswer]) -> dict[str, list[bool]]:
    return {
        "heard": [a.heard == a.expected for a in judged if a.split == "unseen_voice"],
        "heard_unseen_wording": [a.heard == a.expected for a in judged if a.split == "unseen_wording"],
        "heard_ceiling": [a.heard == a.expected for a in originals],
        "heard_as_written": [a.heard == a.written for a in judged],
        "style": [bool(a.style_followed) for a in judged if a.style != "neutral"],
        "style_ceiling": [bool(a.style_followed) for a in originals if a.style != "neutral"],
    }


def _spread(items: Sequence[T], size: int) -> list[T]:
    """`size` items at even distances, or all of them."""
    size = min(size, len(items))
    return [items[index * len(items) // size] for index in range(size)]
