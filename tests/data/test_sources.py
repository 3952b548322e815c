"""A sequence holds the very documents that are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_aqaa.data.datasets import DataConfig, build_dataset
from megatron_aqaa.data.indexed import Documents, DocumentWriter
from megatron_aqaa.data.sources import source_of
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=60, linguistic_size=16, semantic_size=32, size=110, audio_start=108, audio_end=109)
S = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        with DocumentWriter(folder / name, VOCABULARY) as writer:
            for _ in range(50):
                writer.add(random.integers(5, 60, random.integers(4, 20)))
    return folder


@pytest.mark.parametrize("packing", ["whole", "cut"])
@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_named_documents_are_in_the_sequence(folder: Path, packing: str, names: list[str]) -> None:
    train = {str(folder / name): 1.0 + i for i, name in enumerate(names)}
    config = DataConfig(train=train, sequence_length=S, packing=packing)  # type: ignore[arg-type]
    dataset = build_dataset(config, VOCABULARY, num_samples=40, seed=3)
    seen = set()
    for index in range(40):
        source, tokens = source_of(dataset, index), dataset[index]["token_ids"].tolist()
        seen.add(source["data_set"])
        documents = Documents(source["data_set"])
        text = " ".join(map(str, tokens))
        inner = source["documents"] if packing == "whole" else source["documents"][1:-1]  # the outer ones may be torn
        assert len(source["documents"]) > 1 or packing == "whole"
        for number in inner:
            kept = documents[number].token_ids[: -1 if packing == "whole" else None]
            assert " ".join(map(str, kept)) in text
    assert seen == set(train)


def test_other_data_is_refused() -> None:
    with pytest.raises(TypeError, match="list: not a data set"):
        source_of([1, 2], 0)  # type: ignore[arg-type]
