from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from megatron_aqaa.tokenizer.codebook_report import CodebookReport, CodeCounts
from megatron_aqaa.training.speech_models.supervision import IGNORED, FrameLabels, padded
from megatron_aqaa.training.speech_models.tokenizer_scores import UnitErrors
from megatron_aqaa.training.speech_models.tokenizer_steps import SpeechBatch


class Store:
    """As much of a feature store as labels read."""

    def __init__(self, phones: list[str], utterances: Sequence[Sequence[int]] = ()) -> None:
        self.phones, self.utterances = phones, utterances

    def __getitem__(self, i: int) -> Store:
        utterance = Store(self.phones)
        utterance.phones = np.array(self.utterances[i])
        return utterance


def batch(labels: FrameLabels) -> SpeechBatch:
    utterances = labels.store.utterances
    lengths = torch.tensor([len(row) for row in utterances])
    rows = torch.full((len(utterances), int(lengths.max())), IGNORED)
    for row, content in zip(rows, utterances, strict=True):
        row[: len(content)] = torch.tensor(content)
    targets = padded([labels.targets(i) for i in range(len(utterances))])
    pitch = torch.zeros(len(rows), rows.shape[1] // 2)
    return SpeechBatch(torch.zeros(*rows.shape, 80), lengths, rows, pitch, *targets)


def test_phone_error_worked_out_by_hand() -> None:
    labels = FrameLabels(Store(["_", "a", "b", "_:", ";"], [[0, 0, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1]]))
    errors = UnitErrors(labels)
    heard = torch.tensor([[0, 0, 1, 1, 1, 1, 3, 3], [1, 1, 2, 1, 2, 2, 2, 2]])  # beyond the length nothing counts
    errors.add(heard, batch(labels))
    assert (errors.errors, errors.total) == (1, 3)  # "ab a" against "a a": a single frame of b is no phone
    assert errors.rate == pytest.approx(1 / 3)


def test_code_counts_take_the_phone_in_the_middle_of_a_code() -> None:
    codes = CodeCounts(4, frames_per_code=2, phones=["_", "a", "b"])
    spoken = torch.tensor([[0, 1, 0, 2, 0, 1], [0, 2, IGNORED, IGNORED, IGNORED, IGNORED]])
    inside = torch.tensor([[True, True, True], [True, False, False]])
    codes.add(torch.tensor([[3, 0, 3], [0, 0, 0]]), inside, spoken, judged=False)
    codes.add(torch.tensor([[3, 3, 0], [1, 0, 0]]), inside, spoken, judged=True)
    report = codes.report()
    scores = report.scores()
    assert scores["codes_used"] == 2 and scores["codes_used_held_out"] == 3
    assert scores["perplexity"] == pytest.approx(2.0)
    assert scores["code_phone_accuracy"] == pytest.approx(1 / 4)  # 3→1 right; 3→2, 0→1 and the unseen 1 wrong
    assert report.phone_of_code == [2, -1, -1, 1] and report.purity_of_code == [1, 0, 0, 1]


def test_a_report_without_phones_is_kept(tmp_path) -> None:
    codes = CodeCounts(3, 2, [])
    for judged in (False, True):
        codes.add(torch.tensor([[0, 2]]), torch.tensor([[True, True]]), torch.full((1, 4), IGNORED), judged)
    report = codes.report()
    assert "code_phone_accuracy" not in report.scores()
    report.save(tmp_path / "codebook.json")
    assert CodebookReport.load(tmp_path / "codebook.json") == report
