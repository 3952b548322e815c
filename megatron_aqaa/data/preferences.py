"""Preference pairs: read, checked, and packed as whole pairs into sequences of S positions.

Documents 2i and 2i + 1 of a preference data set are the chosen and the rejected answer of pair i, each with the whole
prompt; the mask marks all targets of the answer. Which of them carry preference is chosen here, by modality: `text`
means text pieces and markers (`<|EOT|>`, `<audio_start>`, `<audio_end>`), `audio` the codes, `all` both.

Both halves of a pair lie in one row, as documents of their own, so attention never crosses between them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from megatron_aqaa.data.indexed import Document, Documents
from megatron_aqaa.data.sample import Batch, LossWeights, SampleBuilder
from megatron_aqaa.ops.index import packing_plan
from megatron_aqaa.vocabulary import Vocabulary

TargetKind = Literal["text", "audio", "all"]
Numbers = NDArray[np.int64]


class Pair(NamedTuple):
    """The two answers to one prompt, each a document with the prompt before it."""

    chosen: Document
    rejected: Document


@dataclass(frozen=True)
class PairCounts:
    """What became of the pairs of a data set.

    Attributes:
        total: Pairs on disk.
        used: Pairs that a run learns from.
        identical: Left out: the halves have the same targets under the mask, so there is nothing to prefer.
        without_targets: Left out: a half has no target under the mask.
    """

    total: int
    used: int
    identical: int
    without_targets: int


class PreferencePairs:
    """Pairs of one or several data sets, numbered through in their order.

    Args:
        prefixes: Of the data sets.
        vocabulary: Id layout.
        sequence_length: S; both halves of a pair must fit one sequence.
        preference_targets: Targets that carry preference.
        nll_targets: Targets of the chosen answers that an NLL term is taken over.

    Attributes:
        used: [n] Numbers of the pairs to learn from.
        positions: [total] Positions that a pair takes in a sequence.
        counts: What was left out and why.

    Raises:
        ValueError: A data set is missing, damaged, or holds no pairs; halves have different prompts; a pair does not
            fit a sequence; no pair can be used. The message names the data set and the pair.
    """

    def __init__(
        self,
        prefixes: Sequence[str | Path],
        vocabulary: Vocabulary,
        sequence_length: int,
        preference_targets: TargetKind,
        nll_targets: TargetKind,
    ) -> None:
        self.vocabulary, self.sequence_length = vocabulary, sequence_length
        self.preference_targets, self.nll_targets = preference_targets, nll_targets
        self.prefixes = [Path(prefix) for prefix in prefixes]
        self._parts = [_open(prefix) for prefix in self.prefixes]
        self._starts = np.cumsum([0, *(len(part) // 2 for part in self._parts)])
        self.positions = np.concatenate([_positions(part) for part in self._parts])
        self._check_lengths()
        verdicts = np.array([self._verdict(number) for number in range(len(self))])
        self.used: Numbers = np.flatnonzero(verdicts == "used")
        self.counts = PairCounts(len(self), *(int((verdicts == name).sum()) for name in _VERDICTS))
        if not len(self.used):
            names = ", ".join(map(str, self.prefixes))
            raise ValueError(f"{names}: no pair can be used with loss_mask: {preference_targets}: {self.counts}")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> Pair:
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        index = 2 * int(number - self._starts[part])
        return Pair(self._parts[part][index], self._parts[part][index + 1])

    def row(self, numbers: Numbers, num_places: int) -> Batch:
        """One sequence with these pairs.

        Args:
            numbers: Pairs, at most `num_places` = P.
            num_places: Size of the fields that hold one entry a pair; those left over are −1 and 0.

        Returns:
            What the model reads, each [S]: `token_ids`, `labels`, `document_ids` int64 (pair k of the row: 2k chosen,
            2k + 1 rejected) and `loss_mask` float32, 1 at all targets that any term reads. What the loss reads:
            `answer_ids` [S] int64, equal to `document_ids`; `preference_mask`, `nll_mask` [S] float32; `pairs` [P]
            int64, numbers of the pairs; `num_targets` [P, 3] float32, under the preference mask of chosen and
            rejected, and under the NLL mask.
        """
        sample = SampleBuilder(self.sequence_length, self.vocabulary, LossWeights())
        for number in numbers:
            for answer in self[number]:
                sample.add(answer)
        row = sample.finish()
        is_target, answers = row["loss_mask"] > 0, row["document_ids"]
        is_audio = self.vocabulary.is_audio(row["labels"])
        preference = is_target & _of_kind(self.preference_targets, is_audio)
        nll = is_target & _of_kind(self.nll_targets, is_audio) & (answers % 2 == 0)
        return {
            **row,
            "loss_mask": (preference | nll).float(),
            "answer_ids": answers,
            "preference_mask": preference.float(),
            "nll_mask": nll.float(),
            "pairs": torch.from_numpy(np.pad(numbers, (0, num_places - len(numbers)), constant_values=-1)),
            "num_targets": _num_targets(answers, preference, nll, num_places),
        }

    def _verdict(self, number: int) -> str:
        pair = self[number]
        self._check_prompts(number, pair)
        chosen, rejected = (self._targets(answer) for answer in pair)
        if not len(chosen) or not len(rejected):
            return "without_targets"
        return "identical" if np.array_equal(chosen, rejected) else "used"

    def _targets(self, answer: Document) -> Numbers:
        """Ids that carry preference."""
        token_ids = answer.token_ids[1:]
        carries = _of_kind(self.preference_targets, self.vocabulary.is_audio(token_ids))
        return token_ids[(answer.loss_mask[1:] > 0) & carries]

    def _check_prompts(self, number: int, pair: Pair) -> None:
        chosen, rejected = (answer.token_ids[: _prompt_length(answer)] for answer in pair)
        if not np.array_equal(chosen, rejected):
            raise ValueError(
                f"{self._where(number)}: the halves have different prompts ({len(chosen)} and {len(rejected)} tokens "
                "before the first target); documents 2i and 2i + 1 must be chosen and rejected answer of one prompt"
            )

    def _check_lengths(self) -> None:
        unfit = np.flatnonzero(self.positions > self.sequence_length)
        if len(unfit):
            raise ValueError(
                f"{self._where(int(unfit[0]))} takes {self.positions[unfit[0]]} positions; {len(unfit)} of {len(self)} "
                f"pairs do not fit data.sequence_length = {self.sequence_length}. Set it to at least "
                f"{self.positions.max()}, or prepare the pairs with a smaller max_tokens"
            )

    def _where(self, number: int) -> str:
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        return f"{self.prefixes[part]}, pair {number - self._starts[part]}"


class PairRows(Dataset[Batch]):
    """Sequences of whole pairs, packed by best fit.

    Sequence i is a function of (seed, i) and the pairs: every rank computes the same plan. Epochs differ in order and
    packs.

    Args:
        pairs: Where pairs come from.
        numbers: Pairs to give out.
        seed: Of order and packs.
        num_rows: Give at least as many, over as many epochs as that takes; None: each pair once.
        multiple_of: Rows without pairs fill up the end to a multiple of this, so that no pair is lost to a batch that
            is not full.
    """

    def __init__(
        self, pairs: PreferencePairs, numbers: Numbers, seed: int, num_rows: int | None = None, multiple_of: int = 1
    ) -> None:
        self.pairs = pairs
        self.packs: list[Numbers] = []
        epoch = 0
        while epoch == 0 or (num_rows is not None and len(self.packs) < num_rows):
            self.packs += self._pack(numbers, (seed, epoch))
            epoch += 1
        self.num_places = max(map(len, self.packs), default=0)
        self.packs += [np.zeros(0, np.int64)] * (-len(self.packs) % multiple_of)

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> Batch:
        return self.pairs.row(self.packs[index], self.num_places)

    def _pack(self, numbers: Numbers, seed: tuple[int, int]) -> list[Numbers]:
        """Pairs of every row of an epoch."""
        random = np.random.default_rng(seed)
        shuffled = random.permutation(numbers)
        offsets, order = packing_plan(self.pairs.positions[shuffled], self.pairs.sequence_length)
        packs = np.split(shuffled[order], offsets[1:-1])
        return [packs[pack] for pack in random.permutation(len(packs))]  # the plan has the fullest rows first


_VERDICTS = ("used", "identical", "without_targets")


def _open(prefix: Path) -> Documents:
    documents = Documents(prefix)
    record = Path(f"{prefix}.json")
    kind = json.loads(record.read_text()).get("kind") if record.is_file() else None
    if kind != "preference" or documents.mask is None or len(documents) % 2:
        mask = "no mask" if documents.mask is None else "a mask"
        found = f"kind {kind!r} in {record.name}, {len(documents)} documents, {mask}"
        raise ValueError(f"{prefix}: is no preference data set ({found}); make one with tools/prepare_chat.py")
    return documents


def _positions(documents: Documents) -> Numbers:
    """[pairs]: a document of n tokens takes n − 1 positions."""
    return (documents.lengths.astype(np.int64) - 1).reshape(-1, 2).sum(1)


def _prompt_length(answer: Document) -> int:
    return int(answer.loss_mask.argmax()) if answer.loss_mask.any() else len(answer.loss_mask)


def _of_kind(kind: TargetKind, is_audio: Any) -> Any:
    """Boolean mask (numpy or torch) of the tokens of a kind."""
    return {"text": ~is_audio, "audio": is_audio, "all": is_audio | ~is_audio}[kind]


def _num_targets(answers: torch.Tensor, preference: torch.Tensor, nll: torch.Tensor, num_places: int) -> torch.Tensor:
    counts = torch.bincount(answers[preference], minlength=2 * num_places).view(-1, 2)
    nll_counts = torch.bincount(answers[nll], minlength=2 * num_places).view(-1, 2)[:, :1]
    return torch.cat([counts, nll_counts], 1).float()
