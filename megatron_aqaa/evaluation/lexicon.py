"""Words from phones: the sequence of known words whose pronunciations come nearest to what was heard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_aqaa.audio.espeak import Espeak, Speech
from megatron_aqaa.tokenizer.phones import silent_phones, unstressed

WORD_PENALTY = 0.5
"""Cost of a word, in phone errors: without it, noise between words would become words of one phone."""


class Lexicon:
    """Any sequence of the given words may be heard; there is no grammar.

    Args:
        pronunciations: word → phones, at least one.

    Raises:
        ValueError: no words, or one without phones.
    """

    def __init__(self, pronunciations: Mapping[str, Sequence[str]]) -> None:
        silent = [word for word, phones in pronunciations.items() if not phones]
        if not pronunciations or silent:
            raise ValueError(f"a lexicon needs words with phones; without any: {silent or 'no words at all'}")
        self.words = list(pronunciations)
        names = sorted({phone for phones in pronunciations.values() for phone in phones})
        self.index = {name: i for i, name in enumerate(names)}
        self.lengths = np.array([len(pronunciations[word]) for word in self.words])
        self.phones = np.full((len(self.words), int(self.lengths.max())), -1)
        for row, word in zip(self.phones, self.words, strict=True):
            row[: len(pronunciations[word])] = [self.index[phone] for phone in pronunciations[word]]

    @classmethod
    def spoken(cls, words: Iterable[str], voice: str = "en-us+f2") -> Lexicon:
        """As espeak says each word by itself.

        Raises:
            SpeechEngineError: espeak is not installed.
        """
        with Espeak() as espeak:
            return cls({word: _pronunciation(espeak.speak(word, voice)) for word in sorted(set(words))})

    def spell(self, heard: Sequence[str]) -> list[str]:
        """The words that cost least: an error for each phone that is changed, left out or put in, and their number.

        Dynamic programming over the phones heard: `cost[w, k]` is that of having said k phones of word w.
        """
        cost = np.full((len(self.words), self.phones.shape[1] + 1), np.inf)
        since = np.zeros(cost.shape, np.int64)  # phones heard before the word began
        ends: list[tuple[float, int, int]] = [(0.0, -1, 0)]  # for each number of phones: cost, last word, its start
        self._begin(cost, since, ends[0][0], 0)
        for number, name in enumerate(heard, start=1):
            cost, since = self._hear(cost, since, self.index.get(name, -2))
            ends.append(self._end(cost, since))
            self._begin(cost, since, ends[-1][0], number)
        return self._words(ends)

    def _hear(
        self, cost: NDArray[np.float64], since: NDArray[np.int64], phone: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        said = cost[:, :-1] + (self.phones != phone)
        added = cost + 1
        after, since_after = added.copy(), since.copy()
        better = said < added[:, 1:]
        after[:, 1:][better], since_after[:, 1:][better] = said[better], since[:, :-1][better]
        _leave_out(after, since_after)
        return after, since_after

    def _end(self, cost: NDArray[np.float64], since: NDArray[np.int64]) -> tuple[float, int, int]:
        rows = np.arange(len(self.words))
        word = int(cost[rows, self.lengths].argmin())
        return float(cost[word, self.lengths[word]]), word, int(since[word, self.lengths[word]])

    def _begin(self, cost: NDArray[np.float64], since: NDArray[np.int64], total: float, number: int) -> None:
        begins = total + WORD_PENALTY < cost[:, 0]
        cost[begins, 0], since[begins, 0] = total + WORD_PENALTY, number
        _leave_out(cost, since)

    def _words(self, ends: Sequence[tuple[float, int, int]]) -> list[str]:
        words: list[str] = []
        place = len(ends) - 1
        while place > 0:
            _, word, place = ends[place]
            words.append(self.words[word])
        return words[::-1]


def _leave_out(cost: NDArray[np.float64], since: NDArray[np.int64]) -> None:
    """Let phones of the words go unsaid, an error each, in place."""
    for k in range(1, cost.shape[1]):
        skipped = cost[:, k - 1] + 1
        fewer = skipped < cost[:, k]
        cost[fewer, k], since[fewer, k] = skipped[fewer], since[fewer, k - 1]


def _pronunciation(speech: Speech) -> list[str]:
    names = [unstressed(phone.symbol) for phone in speech.phones]
    silent = silent_phones(names)
    return [name for i, name in enumerate(names) if i not in silent]
