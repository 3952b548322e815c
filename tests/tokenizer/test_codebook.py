from __future__ import annotations

import numpy as np
import pytest

from megatron_aqaa.tokenizer.codebook import codebook_use, majority_phones, phone_accuracy


def test_use_worked_out_by_hand() -> None:
    use = codebook_use(np.array([0, 0, 3, 3]), size=5)
    assert (use.size, use.used, use.counts) == (5, 2, [2, 0, 0, 2, 0])
    assert use.perplexity == pytest.approx(2.0)
    assert codebook_use(np.arange(8), size=8).perplexity == pytest.approx(8.0)


def test_majority_phones_and_accuracy() -> None:
    codes, phones = np.array([0, 0, 0, 2, 2]), np.array([1, 1, 4, 3, 3])
    majority = majority_phones(codes, phones, size=4)
    assert majority.tolist() == [1, -1, 3, -1]
    assert phone_accuracy(codes, phones, majority) == pytest.approx(4 / 5)
    assert phone_accuracy(np.array([1]), np.array([0]), majority) == 0.0  # a code without a phone is never right
