from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import image

from megatron_aqaa.evaluation.codebook_picture import codes_of_phones, draw_codebook
from megatron_aqaa.tokenizer.codebook import codebook_use
from megatron_aqaa.tokenizer.codebook_report import CodebookReport

REPORT = CodebookReport(
    trained=codebook_use([0, 0, 0, 1, 2, 2], 5),
    held_out=codebook_use([0, 1, 1], 5),
    phones=["_", "a", "b"],
    phone_of_code=[1, 1, 0, -1, -1],
    purity_of_code=[1.0, 0.0, 0.5, 0.0, 0.0],
    accuracy=0.5,
)


def test_codes_of_each_phone_and_their_purity() -> None:
    order, sizes, purities = codes_of_phones(REPORT)
    assert (order, sizes) == ([1, 0], [2, 1])
    assert purities == pytest.approx([3 / 4, 1 / 2])  # by occurrence: 3 of code 0 right, 1 of code 1 wrong


@pytest.mark.parametrize("phones", [True, False])
def test_it_is_drawn_with_phones_and_without(tmp_path: Path, phones: bool) -> None:
    report = REPORT if phones else replace(REPORT, phones=[], phone_of_code=[], purity_of_code=[], accuracy=None)
    draw_codebook(report, "semantic codebook", tmp_path / "codebook.png", "semantic")
    pixels = image.imread(tmp_path / "codebook.png")
    assert pixels.shape[0] == (704 if phones else 374) and pixels[..., :3].std() > 0.02
