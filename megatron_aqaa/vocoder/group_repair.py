"""A stream of audio token ids → whole groups `[L L S S S]`, with whatever breaks their order dropped and reported.

Policy. An id that is no audio token is dropped, and the group around it goes on. An audio id of the wrong codebook ends
the group at hand, which is dropped: if the id is linguistic it starts the next group (of three in a row the last two
count), if it is semantic it is dropped as well, and so is all that follows up to the next linguistic id.

So whatever came before, a group that arrives whole comes out as it was; and an id that is inserted, lost or replaced
costs at most the one group that it touches: that group is missing, or it holds an inserted id in the place of its own.
Which of three linguistic ids in a row is the stray one cannot be told without waiting, and waiting would cost sound.
What is dropped is missing in time too: 120 ms a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from megatron_aqaa.vocabulary import GROUP_SIZE, LINGUISTIC_PER_GROUP, Vocabulary

Group = tuple[int, ...]
"""Five merged token ids, `[L L S S S]`."""

Piece = int | Sequence[int] | npt.NDArray[np.integer]
"""What a stream brings at a time: one merged id or several."""

FaultKind = Literal["wrong_codebook", "not_audio", "out_of_range", "incomplete"]


@dataclass(frozen=True)
class GroupFault:
    """A place where the order of groups was broken.

    Attributes:
        kind: `wrong_codebook`: an audio id where one of the other codebook belongs (a stray id before it, or one that
            is missing); `not_audio`: text or a marker; `out_of_range`: no id of the vocabulary; `incomplete`: the
            stream ended inside a group.
        position: of `token_id` among all ids that arrived, from 0.
        token_id: the id that was out of place; None at the end of the stream.
        found: what it is, in words.
        dropped: the ids that were thrown away for it, in their order.
    """

    kind: FaultKind
    position: int
    token_id: int | None
    found: str
    dropped: tuple[int, ...]

    def __str__(self) -> str:
        where = f"position {self.position}"
        if self.token_id is None:
            return f"{where}: the stream {self.found}; dropped {_ids(self.dropped)} (audio comes in whole groups)"
        return f"{where}: id {self.token_id} {self.found}; dropped {_ids(self.dropped)}"


OnFault = Callable[[GroupFault], None]


def refuse(fault: GroupFault) -> None:
    """Strict handling: the first fault ends the stream.

    Raises:
        ValueError: always; says what was found where.
    """
    raise ValueError(str(fault))


@dataclass
class _OpenFault:
    """A fault whose dropped ids are still being collected."""

    kind: FaultKind
    position: int
    token_id: int
    found: str
    dropped: list[int] = field(default_factory=list)


class GroupRepair:
    """The state machine: ids in, in pieces of any length, whole groups out; see the module's docstring.

    A fault is reported when the next id is taken into a group, or by `finish`. One inserted or replaced id makes one or
    two of them.

    Args:
        vocabulary: layout of the ids.
        on_fault: told of each fault; what it raises ends the stream.
    """

    def __init__(self, vocabulary: Vocabulary, on_fault: OnFault = refuse) -> None:
        self.vocabulary, self.on_fault = vocabulary, on_fault
        self._group: list[int] = []
        self._position = 0
        self._fault: _OpenFault | None = None

    def push(self, token_ids: Piece) -> list[Group]:
        """Take one id or several; returns the groups that they complete.

        Raises:
            ValueError: not integers.
        """
        ids = np.asarray(token_ids)
        if ids.size and ids.dtype.kind not in "iu":
            raise ValueError(f"token ids must be integers, not {ids.dtype}")
        groups = []
        for token_id in ids.ravel().tolist():
            self._take(token_id)
            self._position += 1
            if len(self._group) == GROUP_SIZE:
                groups.append(tuple(self._group))
                self._group = []
        return groups

    def finish(self) -> None:
        """The stream has ended: report what is left over."""
        self._report()
        if self._group:
            found = f"ends inside a group, after {len(self._group)} of its {GROUP_SIZE} ids"
            dropped, self._group = tuple(self._group), []
            self.on_fault(GroupFault("incomplete", self._position, None, found, dropped))

    def _take(self, token_id: int) -> None:
        v = self.vocabulary
        if not 0 <= token_id < v.size:
            self._drop("out_of_range", token_id, f"lies outside the vocabulary of {v.size}", [token_id])
        elif not v.is_audio(token_id):
            self._drop("not_audio", token_id, "is no audio token", [token_id])
        elif token_id >= v.semantic_start:
            self._take_semantic(token_id)
        else:
            self._take_linguistic(token_id)

    def _take_semantic(self, token_id: int) -> None:
        if len(self._group) >= LINGUISTIC_PER_GROUP:
            self._accept(token_id)
            return
        dropped, self._group = [*self._group, token_id], []
        self._drop("wrong_codebook", token_id, "is semantic where a linguistic one was expected", dropped)

    def _take_linguistic(self, token_id: int) -> None:
        if len(self._group) >= LINGUISTIC_PER_GROUP:
            start = 1 if len(self._group) == LINGUISTIC_PER_GROUP else len(self._group)
            dropped, self._group = self._group[:start], self._group[start:]
            self._drop("wrong_codebook", token_id, "is linguistic where a semantic one was expected", dropped)
        self._accept(token_id)

    def _accept(self, token_id: int) -> None:
        self._report()
        self._group.append(token_id)

    def _drop(self, kind: FaultKind, token_id: int, found: str, dropped: list[int]) -> None:
        """Throw ids away, for a new fault or for the one that is open."""
        if self._fault is None:
            self._fault = _OpenFault(kind, self._position, token_id, found)
        self._fault.dropped += dropped

    def _report(self) -> None:
        fault, self._fault = self._fault, None
        if fault:
            self.on_fault(GroupFault(fault.kind, fault.position, fault.token_id, fault.found, tuple(fault.dropped)))


def repaired_groups(token_ids: Iterable[Piece], vocabulary: Vocabulary, on_fault: OnFault = refuse) -> Iterator[Group]:
    """The whole groups of a stream that brings single ids, chunks of any length, or both, each as soon as it is whole.

    Raises:
        ValueError: by default, at the first fault; says what was found where.
    """
    repair = GroupRepair(vocabulary, on_fault)
    for piece in token_ids:
        yield from repair.push(piece)
    repair.finish()


def _ids(token_ids: tuple[int, ...]) -> str:
    return "1 id" if len(token_ids) == 1 else f"{len(token_ids)} ids"
