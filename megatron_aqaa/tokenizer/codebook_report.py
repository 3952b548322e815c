"""A codebook in detail: how often each code occurs, which phone it stands for, and how often that is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from megatron_aqaa.tokenizer.codebook import CodebookUse, codebook_use, majority_phones, phone_accuracy
from megatron_aqaa.whole_file import write_whole


@dataclass(frozen=True)
class CodebookReport:
    """What `codebook.json` holds.

    Attributes:
        trained: use by utterances of the trained splits.
        held_out: use by held-out ones.
        phones: names; empty where the features have no phones.
        phone_of_code: index of the commonest phone of each code in the trained set; −1 for codes that do not occur.
        purity_of_code: how often it is that phone.
        accuracy: share of held-out codes whose phone is the one spoken; None without phones.
    """

    trained: CodebookUse
    held_out: CodebookUse
    phones: list[str]
    phone_of_code: list[int]
    purity_of_code: list[float]
    accuracy: float | None

    def scores(self) -> dict[str, float]:
        """The numbers that are printed."""
        used = {"codes_used": self.trained.used, "codes_used_held_out": self.held_out.used}
        accuracy = {} if self.accuracy is None else {"code_phone_accuracy": self.accuracy}
        return used | {"perplexity": self.trained.perplexity} | accuracy

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        write_whole(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> CodebookReport:
        """Read what `save` wrote.

        Raises:
            ValueError: there is no such file.
        """
        if not path.is_file():
            raise ValueError(f"{path}: no codebook report; tools/train_tokenizer.py writes it")
        content = json.loads(path.read_text())
        trained, held_out = CodebookUse(**content.pop("trained")), CodebookUse(**content.pop("held_out"))
        return cls(trained, held_out, **content)


class CodeCounts:
    """Counts codes and phones of two sets of utterances.

    Args:
        size: of the codebook.
        frames_per_code: frames of 10 ms.
        phones: names; none where phones are not known.
    """

    def __init__(self, size: int, frames_per_code: int, phones: Sequence[str]) -> None:
        self.size, self.frames_per_code, self.phones = size, frames_per_code, list(phones)
        self.codes: dict[bool, list[np.ndarray]] = {False: [], True: []}
        self.spoken: dict[bool, list[np.ndarray]] = {False: [], True: []}

    def add(self, codes: Tensor, inside: Tensor, phones: Tensor, judged: bool) -> None:
        """Note codes [B, F / n] where `inside` [B, F / n] is true, and the phone [B, F] in the middle of each."""
        middle = phones[:, self.frames_per_code // 2 :: self.frames_per_code]
        self.codes[judged].append(codes[inside].numpy())
        self.spoken[judged].append(middle[inside].numpy())

    def report(self) -> CodebookReport:
        """Of all that was noted."""
        trained, held_out = (np.concatenate(self.codes[judged]) for judged in (False, True))
        uses = codebook_use(trained, self.size), codebook_use(held_out, self.size)
        if not self.phones:
            return CodebookReport(*uses, [], [], [], None)
        spoken, judged = (np.concatenate(self.spoken[key]) for key in (False, True))
        majority = majority_phones(trained, spoken, self.size)
        right = np.bincount(trained[majority[trained] == spoken], minlength=self.size)
        purity = right / np.maximum(1, np.asarray(uses[0].counts))
        accuracy = phone_accuracy(held_out, judged, majority)
        return CodebookReport(*uses, self.phones, majority.tolist(), purity.round(4).tolist(), accuracy)
