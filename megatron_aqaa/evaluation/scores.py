"""Scores as counts: how many of how many, with the standard error that so many trials leave, and the target."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_aqaa.vocabulary import GROUP_SIZE, LINGUISTIC_PER_GROUP, AnswerFormat, GroupGrammar, Vocabulary


@dataclass(frozen=True)
class Score:
    """A share of right outcomes.

    Attributes:
        name: key in files and code.
        label: what a reader sees.
        method: how it was measured, one sentence.
        right: outcomes that were right.
        n: outcomes in all; 0 means not measured.
        target: what the share should reach, if anything was promised.
    """

    name: str
    label: str
    method: str
    right: int = 0
    n: int = 0
    target: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.n:
            raise ValueError(f"score {self.name}: {self.right} right of {self.n} is impossible")

    @property
    def value(self) -> float | None:
        """The share, None if nothing was measured."""
        return self.right / self.n if self.n else None

    @property
    def standard_error(self) -> float | None:
        """Binomial standard error of the share, from (right + 1) / (n + 2): all right does not mean certain."""
        smoothed = (self.right + 1) / (self.n + 2)
        return math.sqrt(smoothed * (1 - smoothed) / self.n) if self.n else None

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None without a target or a measurement."""
        return None if self.value is None or self.target is None else self.value >= self.target

    def of(self, outcomes: Iterable[bool]) -> Score:
        """The same score, measured."""
        outcomes = list(outcomes)
        return replace(self, right=sum(map(bool, outcomes)), n=len(outcomes))


MEASURES = (
    Score(
        "text_unseen_voice",
        "Right answer, unseen voices",
        "exact match of the answer's text; whole voices are held out of training",
        target=0.95,
    ),
    Score(
        "text_unseen_wording",
        "Right answer, unseen wordings",
        "exact match of the answer's text; one wording of every kind of question is held out of training",
        target=0.85,
    ),
    Score(
        "heard",
        "Spoken answer heard right, unseen voices",
        "a recogniser that took no part in training hears the expected answer",
        target=0.85,
    ),
    Score("heard_unseen_wording", "Spoken answer heard right, unseen wordings", "the same on held-out wordings"),
    Score("heard_ceiling", "The recogniser's own ceiling", "the same recogniser on original recordings of the answers"),
    Score("heard_as_written", "Spoken answer equals the written one", "it hears what the model wrote, right or wrong"),
    Score(
        "style",
        "Style command followed",
        "duration and pitch measured on the waveform, against neutral recordings of the same words",
        target=0.90,
    ),
    Score("style_ceiling", "The style measure's own ceiling", "the same measure on original recordings of the answers"),
    Score("grammar_constrained", "Lawful answers", "whole answers that the group grammar accepts", target=1.0),
    Score("grammar_free", "Lawful answers without the constraint", "the same with nothing enforced, greedy"),
    Score("groups_free", "Lawful groups without the constraint", "groups of five audio tokens that read LLSSS"),
    Score(
        "ranking",
        "Better answer ranked first",
        "held-out pairs of SFT-1's sampled answers: the text of the right one has the higher log-probability",
    ),
)
"""What a held-out test measures, with the full demo's targets."""


@dataclass(frozen=True)
class ScoreCard:
    """All scores of one trained model, in reading order."""

    scores: tuple[Score, ...] = MEASURES

    def __getitem__(self, name: str) -> Score:
        return next(score for score in self.scores if score.name == name)

    def with_outcomes(self, outcomes: Mapping[str, Iterable[bool]]) -> ScoreCard:
        """Fill in what was measured; the rest keeps n = 0."""
        return ScoreCard(tuple(s.of(outcomes[s.name]) if s.name in outcomes else s for s in self.scores))

    def with_targets(self, targets: Mapping[str, float]) -> ScoreCard:
        """Other targets, for a reduced run.

        Raises:
            ValueError: a name is not one of the scores.
        """
        unknown = set(targets) - {score.name for score in self.scores}
        if unknown:
            raise ValueError(f"target for {sorted(unknown)}: known scores are {', '.join(s.name for s in self.scores)}")
        return ScoreCard(tuple(replace(s, target=targets.get(s.name, s.target)) for s in self.scores))

    @property
    def missed(self) -> list[Score]:
        """Scores that stayed under their target."""
        return [score for score in self.scores if score.reached is False]

    def table(self) -> str:
        """The scores as aligned text."""
        return "\n".join(_row(score) for score in self.scores)

    def to_plain(self) -> list[dict[str, Any]]:
        """Plain data, one mapping per score."""
        return [
            {**vars(s), "value": s.value, "standard_error": s.standard_error, "reached": s.reached} for s in self.scores
        ]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(self.to_plain(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> ScoreCard:
        """Read what `save` wrote."""
        fields = ("name", "label", "method", "right", "n", "target")
        return cls(tuple(Score(**{key: row[key] for key in fields}) for row in json.loads(path.read_text())))


def _row(score: Score) -> str:
    if score.value is None:
        return f"{score.label:42s} not measured"
    mark = {True: "reached", False: "MISSED", None: ""}[score.reached]
    target = "" if score.target is None else f"target {score.target:.2f}"
    share = f"{score.value:.3f} ± {score.standard_error:.3f}"
    return f"{score.label:42s} {share}  n {score.n:<5d} {target:12s} {mark}".rstrip()


def lawful(answers: Iterable[Sequence[int]], vocabulary: Vocabulary, answer_format: AnswerFormat) -> list[bool]:
    """For every answer (token ids, `<|EOT|>` included): does the group grammar accept it?"""
    return [GroupGrammar(vocabulary, answer_format).accepts(list(token_ids)) for token_ids in answers]


def lawful_groups(token_ids: Sequence[int], vocabulary: Vocabulary) -> list[bool]:
    """Cut an answer's audio tokens into fives, as a vocoder would, and say which have the form LLSSS.

    One stray token shifts all later groups, and they all count as wrong: that is what would be heard.
    """
    audio = [token_id for token_id in token_ids if vocabulary.is_audio(token_id)]
    groups = [audio[start : start + GROUP_SIZE] for start in range(0, len(audio), GROUP_SIZE)]
    return [_is_lawful(group, vocabulary) for group in groups]


def _is_lawful(group: Sequence[int], vocabulary: Vocabulary) -> bool:
    semantic = [token_id >= vocabulary.semantic_start for token_id in group]
    return (
        len(group) == GROUP_SIZE and not any(semantic[:LINGUISTIC_PER_GROUP]) and all(semantic[LINGUISTIC_PER_GROUP:])
    )
