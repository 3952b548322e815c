"""The short form of a pipeline layout, against Megatron's own reading of it."""

from __future__ import annotations

import pytest
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from megatron_aqaa.platform.pipeline_layout import pipeline_stages

LETTERS = {LayerType.embedding: "E", LayerType.decoder: "t", LayerType.loss: "L"}


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("EttL", ("EttL",)),
        ("Et*3|t*2,L", ("Ettt", "ttL")),
        ("E|ttt|t|L", ("E", "ttt", "t", "L")),
        ("E|(t*2|)*3L", ("E", "tt", "tt", "tt", "L")),
        ("E(t|)*3|(tt|t|)*2L", ("Et", "t", "t", "", "tt", "t", "tt", "t", "L")),
        ("Et*10|(t*11|)*2t*10L", ("E" + "t" * 10, "t" * 11, "t" * 11, "t" * 10 + "L")),
    ],
)
def test_stages_are_those_that_megatron_reads(layout: str, expected: tuple[str, ...]) -> None:
    theirs = PipelineParallelLayerLayout.parse_str_to_list(layout)
    assert pipeline_stages(layout) == expected == tuple("".join(LETTERS[kind] for kind in stage) for stage in theirs)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("Ettm|L", "cannot read 'm'"),
        ("Et*|tL", r"cannot read '\*'"),
        ("E(tt|tL", r"cannot read '\('"),
        ("tt|ttL", "begins with one embedding E"),
        ("Ett|tt", "ends with one head L"),
        ("Et|EtL", "begins with one embedding E"),
        ("", "begins with one embedding E"),
    ],
)
def test_what_cannot_be_a_layout_is_refused(layout: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline_stages(layout)
