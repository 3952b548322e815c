"""The stages of post-training side by side: held-out scores of each, and whose sampled answers the rules prefer."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance

from megatron_aqaa.evaluation.scores import Score, ScoreCard

STAGES = {"SFT-1": "comparison/sft", "SFT-2": "comparison/sft2", "DPO": "comparison/dpo", "merged": "evaluation"}
"""Label → folder of its evaluation, below the run directory, in the order of training."""

SHOWN = ("text_unseen_voice", "text_unseen_wording", "heard", "style", "grammar_constrained", "grammar_free", "ranking")
"""Scores that are set side by side."""

MARGIN = 1.0
"""Scores that differ by less are a tie, as for preference pairs: brevity alone decides only between the extremes."""


Ratings = Mapping[str, Sequence[float]]
"""Question → the scores of the answers sampled to it."""


@dataclass(frozen=True)
class WinRate:
    """How often the rules prefer a model's sampled answer to that of SFT-1, for the same question and seed.

    Attributes:
        wins: answers whose score is higher by at least `MARGIN`.
        losses: answers of SFT-1 whose score is.
        ties: the others, which count half.
        n: questions; each has equally many answers.
        standard_error: of the rate, from its spread over questions: answers to one question are not independent.
    """

    wins: int
    losses: int
    ties: int
    n: int
    standard_error: float

    @property
    def rate(self) -> float:
        """(wins + ties / 2) / answers."""
        return 0.5 + (self.wins - self.losses) / (2 * (self.wins + self.losses + self.ties))

    @classmethod
    def of(cls, ratings: Ratings, baseline: Ratings) -> WinRate | None:
        """Compare both models answer by answer; None unless both answered the same, two questions or more."""
        if len(ratings) < 2 or _counts(ratings) != _counts(baseline):
            return None
        signs = [[_sign(own - other) for own, other in zip(ratings[q], baseline[q], strict=True)] for q in ratings]
        counts = Counter(sign for of_question in signs for sign in of_question)
        error = math.sqrt(variance(mean(of_question) / 2 for of_question in signs) / len(signs))
        return cls(counts[1], counts[-1], counts[0], len(signs), error)


def _counts(ratings: Ratings) -> dict[str, int]:
    return {question: len(scores) for question, scores in ratings.items()}


def _sign(difference: float) -> int:
    return (difference >= MARGIN) - (difference <= -MARGIN)


@dataclass(frozen=True)
class StageScores:
    """What was measured of one stage.

    Attributes:
        label: name of the stage.
        card: its held-out scores.
        mean_rating: mean score of its sampled answers under the rules; None if there are none.
        win_rate: against SFT-1; None of SFT-1 itself, and where nothing can be compared.
    """

    label: str
    card: ScoreCard
    mean_rating: float | None
    win_rate: WinRate | None


def load_stages(run: Path) -> list[StageScores]:
    """Scores of all stages that were evaluated, in the order of training; none without SFT-1."""
    folders = {label: run / folder for label, folder in STAGES.items() if (run / folder / "scores.json").exists()}
    ratings = {label: _ratings(folder) for label, folder in folders.items()}
    first = next(iter(STAGES))
    if first not in folders:
        return []
    return [
        StageScores(
            label,
            ScoreCard.load(folder / "scores.json"),
            _mean_rating(ratings[label]),
            WinRate.of(ratings[label], ratings[first]) if label != first else None,
        )
        for label, folder in folders.items()
    ]


@dataclass(frozen=True)
class Row:
    """One measure of all stages.

    Attributes:
        label: what a reader sees.
        method: how it was measured.
        cells: (share, standard error) of each stage; None where it was not measured.
    """

    label: str
    method: str
    cells: tuple[tuple[float, float] | None, ...]


def rows(stages: Sequence[StageScores]) -> list[Row]:
    """Measures that at least one stage has, in reading order."""
    found = []
    for name in SHOWN:
        scores = [stage.card[name] for stage in stages]
        counts = sorted({score.n for score in scores} - {0})
        if counts:
            method = f"{scores[0].method}; n\u00a0=\u00a0{', '.join(map(str, counts))}"
            found.append(Row(scores[0].label, method, tuple(map(_share, scores))))
    win_rates = [stage.win_rate for stage in stages]
    if any(win_rates):
        found.append(_win_rate_row(win_rates))
    return found


def table(stages: Sequence[StageScores]) -> str:
    """The stages side by side as aligned text."""
    lines = [("", *(stage.label for stage in stages))]
    lines += [(row.label, *map(_cell, row.cells)) for row in rows(stages)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _win_rate_row(win_rates: Sequence[WinRate | None]) -> Row:
    first = next(rate for rate in win_rates if rate)
    answers = (first.wins + first.losses + first.ties) // first.n
    counts = ", ".join(f"{rate.wins} won {rate.losses} lost" for rate in win_rates if rate)
    method = (
        f"both sampled with one seed, rated by the rules; scores within {MARGIN:g} are ties, which count half; "
        f"n\u00a0=\u00a0{first.n}, {answers} answer{'s'[: answers > 1]} each: {counts}"
    )
    cells = tuple((rate.rate, rate.standard_error) if rate else None for rate in win_rates)
    return Row("Sampled answer preferred to SFT-1's", method, cells)


def _ratings(folder: Path) -> dict[str, list[float]]:
    path = folder / "ratings.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _mean_rating(ratings: Ratings) -> float | None:
    scores = [score for of_question in ratings.values() for score in of_question]
    return mean(scores) if scores else None


def _share(score: Score) -> tuple[float, float] | None:
    if score.value is None or score.standard_error is None:
        return None
    return score.value, score.standard_error


def _cell(cell: tuple[float, float] | None) -> str:
    return f"{cell[0]:.3f} ± {cell[1]:.3f}" if cell else "–"
