"""The merges of the recipes: 5 SFT-1 : 5 SFT-2 : 1 DPO, of the runs that the recipes make."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_aqaa.checkpoint.merge.config import load_merge_config
from tests.examples.recipes import FOLDERS, path_of, recipe


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_merge_is_the_published_one(folder: str) -> None:
    config = load_merge_config(path_of(folder, "merge"))
    assert config.merge_method == "linear"
    assert {entry.model: entry.parameters for entry in config.models} == {
        "sft1": {"weight": 5}, "sft2": {"weight": 5}, "dpo": {"weight": 1},
    }  # fmt: skip
    below = config.below(Path("runs") / folder)
    assert below.all_models() == [str(recipe(folder, name).run) for name in ("sft1", "sft2", "dpo")]
